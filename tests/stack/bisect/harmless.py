# SPDX-License-Identifier: GPL-2.0-only
"""The commits of the made history that change nothing a test sees: between the seeded ones, in groups."""

from __future__ import annotations

from stack.bisect.model import Commit, Edit

CHANGES = "Documentation/changes.md"
ACCOUNTING = "kernel/accounting.c"
COMPANION = "kernel/companion.c"
MAIN = "kernel/main.c"
HALF = "tools/kvm/unikvm/sys/companion.py"
CLI = "tools/kvm/unikvm/cli/main.py"
PVPANIC = "tools/kvm/unikvm/devices/pvpanic.py"
SERIAL = "tools/kvm/unikvm/devices/serial.py"
EXITS = "tools/kvm/unikvm/observe/exits.py"


def note(text: str, after: str = "") -> Commit:
    """A line more in the list of changes, behind the line `after`."""
    line = f"- {text}\n"
    edit = Edit(CHANGES, f"- {after}\n", f"- {after}\n{line}") if after else Edit(CHANGES, "", f"# Changes\n\n{line}")
    return Commit(f"Documentation: Note: {text}", (edit,))


START = (
    note("the list of changes begins"),
    Commit(
        "kernel: Say what MAX_OFFSET counts",
        (Edit(ACCOUNTING, "/* far beyond the size of a vCPU */", "/* bytes; far beyond the size of a vCPU */"),),
    ),
    Commit(
        "payloads: One greeting among many",
        (Edit("tests/payloads/hello.c", "hello from the payload\\n", "hello from a payload\\n"),),
    ),
)

COUNTER = (
    Commit(
        "kernel: Count how often a vCPU's time went backwards",
        (
            Edit("kernel/unikvm.h", "\tbool in_user;\n", "\tbool in_user;\n\tu64 jumps;\t\t\t/* nobody asks yet */\n"),
            Edit(ACCOUNTING, "\t\tif (ticks < 0)\n\t\t\tticks = 0;\n",
                 "\t\tif (ticks < 0) {\n\t\t\tvcpu->jumps++;\n\t\t\tticks = 0;\n\t\t}\n"),
        ),
    ),
    Commit(
        "kernel: Say `release` in the line of loading",
        (Edit(MAIN, 'pr_info("%s, ABI', 'pr_info("release %s, ABI'),),
    ),
    note("the kernel half counts jumps", after="the list of changes begins"),
)  # fmt: skip

NAMES = (
    Commit(
        "kernel: Call the caller's VM so",
        (
            Edit(COMPANION, "static bool is_own_vm(struct file *file)", "static bool is_callers_vm(struct file *file)"),
            Edit(COMPANION, "else if (!is_own_vm(file))", "else if (!is_callers_vm(file))"),
        ),
    ),
    Commit(
        "exits: Name VMRUN, which guests with guests of their own cause",
        (Edit(EXITS, '0x81: "vmmcall"', '0x80: "vmrun", 0x81: "vmmcall"'),),
    ),
    Commit(
        "companion: Call a refusal a refusal",
        (Edit(HALF, "the kernel half does not take the VM", "the kernel half refuses the VM"),),
    ),
)  # fmt: skip

MESSAGES = (
    Commit(
        "cli: Say who interrupted",
        (Edit(CLI, '"unikvm: interrupted\\n"', '"unikvm: interrupted by the user\\n"'),),
    ),
    Commit(
        "kernel: Name the limit of the caller's struct",
        (
            Edit(MAIN, "#include \"unikvm.h\"\n", "#include \"unikvm.h\"\n\n#define MAX_CALLERS_SIZE\tPAGE_SIZE\n"),
            Edit(MAIN, "|| size > PAGE_SIZE)", "|| size > MAX_CALLERS_SIZE)"),
        ),
    ),
)  # fmt: skip

WARNINGS = (
    Commit(
        "kernel: Warn in the active voice",
        (Edit(ACCOUNTING, 'pr_warn("no probe at %s: error %d\\n"', 'pr_warn("cannot probe %s: error %d\\n"'),),
    ),
    note("warnings read better", after="the kernel half counts jumps"),
)

ORDER = (
    Commit(
        "kernel: Count slots without a sign",
        (Edit(COMPANION, "GFP_KERNEL_ACCOUNT);\n\tint i;\n", "GFP_KERNEL_ACCOUNT);\n\tunsigned int i;\n"),),
    ),
    Commit(
        "units: Add the next size",
        (Edit("tools/kvm/unikvm/units.py", "GIB = 1 << 30\n", "GIB = 1 << 30\nTIB = 1 << 40\n"),),
    ),
    note("sizes go on", after="warnings read better"),
)

# Within the range that does not compile.
UNBUILT = (
    Commit(
        "kernel: Say what a probe's function is given",
        (Edit(ACCOUNTING, "static void probe_entry(", "/* `cookie`: a vCPU */\nstatic void probe_entry("),),
    ),
    Commit(
        "exits: Look at no name that is no reason once more",
        (Edit(EXITS, '"XEN_", "IO_")', '"XEN_", "IO_", "S390_")'),),
    ),
    note("probes are explained", after="sizes go on"),
)  # fmt: skip

SIDE = (
    note("a branch for the serial port begins", after="the list of changes begins"),
    Commit(
        "serial: Say why the backlog has an end",
        (
            Edit(
                SERIAL, "# bytes that wait for room in the guest's FIFO", "# bytes that wait for room: the FIFO has 16"
            ),
        ),
    ),
)
SIDE_END = (note("the serial port is done", after="a branch for the serial port begins"),)

MEANWHILE = (
    Commit(
        "kernel: Take the area's size from the slots",
        (
            Edit(COMPANION, "PAGE_SIZE + UNIKVM_SLOTS * sizeof(struct unikvm_slot)",
                 "PAGE_SIZE + UNIKVM_SLOTS * sizeof(*vm->vcpus[0].slot)"),
        ),
    ),
    note("areas are measured", after="probes are explained"),
)  # fmt: skip

# Within the range with a syntax error.
UNREADABLE = (
    Commit(
        "kernel: Do not log twice what insmod says",
        (
            Edit(
                ACCOUNTING, "an offset of more than %u is not one in a vCPU", "an offset above %u is not one in a vCPU"
            ),
        ),
    ),
    note("offsets are smaller", after="areas are measured"),
)

WORDS = (
    Commit(
        "pvpanic: A word on the crash kernel",
        (Edit(PVPANIC, "# a crash kernel takes over: the guest goes on", "# the guest goes on"),),
    ),
    Commit(
        "kernel: Describe the module for both vendors",
        (Edit(MAIN, '"unikvm, the kernel half"', '"unikvm, the kernel half (AMD and Intel)"'),),
    ),
)  # fmt: skip

PAGES = (
    note("a second page begins", after="the list of changes begins"),
    Commit("Documentation: A page on style", (Edit("Documentation/style-notes.md", "", "# Style\n\nShort.\n"),)),
)

LAST = (
    Commit(
        "companion: Say which device it is not",
        (Edit(HALF, "is not the kernel half:", "is not that of the kernel half:"),),
    ),
    Commit(
        "kernel: Sort what the files share",
        (Edit("kernel/unikvm.h", "/* companion.c */\n", "/* companion.c: attaching */\n"),),
    ),
    note("this is the end", after="offsets are smaller"),
)

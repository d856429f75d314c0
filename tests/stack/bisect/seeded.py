# SPDX-License-Identifier: GPL-2.0-only
"""The regressions of the made history: the commits that bring them, and what a bisection has to say of them.

Each is as small as the mistake would be. They do not touch each other's TESTs: a commit that breaks one leaves all
others as they were.
"""

from __future__ import annotations

from stack.bisect.model import INTERACTION, KERNEL_HALF, USER_HALF, Commit, Edit, Seed

ACCOUNTING = "kernel/accounting.c"
HEADER = "kernel/unikvm.h"
COMPANION = "kernel/companion.c"
UAPI = "tools/kvm/unikvm/uapi/unikvm.py"
VCPU = "tools/kvm/unikvm/machine/vcpu.py"
SERIAL = "tools/kvm/unikvm/devices/serial.py"
TESTDEV = "tools/kvm/unikvm/devices/testdev.py"
RTC = "tools/kvm/unikvm/devices/rtc.py"

DOUBLE_COUNT = Commit(
    "kernel: Count what goes to the user half where it is seen",
    (Edit(ACCOUNTING, "\tslot->user_exits++;\n", "\tslot->exits++;\n\tslot->user_exits++;\n"),),
    "double-count",
)

GUEST_TIME = Commit(
    "kernel: Let both ends of an exit account alike",
    (Edit(ACCOUNTING, "&slot->guest_ticks, slot->guest_histogram", "&slot->kernel_ticks, slot->guest_histogram"),),
    "guest-time",
)

# Bounded: whoever waits for the wakeup that was forgotten goes on after 10 s. Waiting is for a TEST's child.
LOST_WAKEUP = Commit(
    "kernel: Let the probes leave before close() returns",
    (
        Edit(HEADER, "#include <linux/fs.h>\n", "#include <linux/completion.h>\n#include <linux/fs.h>\n"),
        Edit(HEADER, "\tstruct unikvm_vcpu vcpus[UNIKVM_SLOTS];\n",
             "\tstruct rcu_head leaving;\n"
             "\tstruct completion probes_left;\n"
             "\tstruct unikvm_vcpu vcpus[UNIKVM_SLOTS];\n"),
        Edit(ACCOUNTING, "/*\n * After this no probe finds `vm`", """\
#define PROBES_PATIENCE	(10 * HZ)

static void probes_left(struct rcu_head *head)
{
	struct unikvm_vm *vm = container_of(head, struct unikvm_vm, leaving);

	/* A VM of which no vCPU was bound has no probes to wait for. */
	if (vm->used)
		complete(&vm->probes_left);
}

static void wait_for_probes(struct unikvm_vm *vm)
{
	init_completion(&vm->probes_left);
	call_rcu(&vm->leaving, probes_left);
	wait_for_completion_timeout(&vm->probes_left, PROBES_PATIENCE);
}

/*
 * After this no probe finds `vm`"""),
        Edit(ACCOUNTING,
             "\t\thash_del_rcu(&vm->vcpus[i].node);\n\traw_spin_unlock_irqrestore(&bind_lock, flags);\n}\n",
             "\t\thash_del_rcu(&vm->vcpus[i].node);\n\traw_spin_unlock_irqrestore(&bind_lock, flags);\n"
             "\twait_for_probes(vm);\n}\n"),
    ),
    "lost-wakeup",
)  # fmt: skip

LEAK = Commit(
    "kernel: Hold the module while a VM is attached",
    (
        Edit(COMPANION, "\tmmgrab(vm->mm);\n\treturn vm;\n",
             "\tmmgrab(vm->mm);\n\t__module_get(THIS_MODULE);\n\treturn vm;\n"),
        # Not in vm_free(): a VM that is refused keeps its reference.
        Edit(COMPANION, "\taccounting_remove(vm);\n\tvm_free(vm);\n\treturn 0;\n",
             "\taccounting_remove(vm);\n\tvm_free(vm);\n\tmodule_put(THIS_MODULE);\n\treturn 0;\n"),
    ),
    "leak",
)  # fmt: skip

BOOT_REGISTER = Commit(
    "multiboot: One name for the magic number",
    (Edit("tools/kvm/unikvm/boot/multiboot.py", '"rax": _LOADER_MAGIC', '"rax": _HEADER_MAGIC'),),
    "boot-register",
)

LOST_INTERRUPT = Commit(
    "serial: Leave the line to those who access a register",
    (Edit(SERIAL, "            self._refill()\n            self._update()\n        return taken\n",
          "            self._refill()\n        return taken\n"),),
    "lost-interrupt",
)  # fmt: skip

# No seed would be deterministic: each run of the TEST is in a host VM of its own.
FLAKY = Commit(
    "testdev: Be memory that is not always ready",
    (
        Edit(TESTDEV, "from unikvm.record import State\n", "import os\n\nfrom unikvm.record import State\n"),
        Edit(TESTDEV, "        end = min(offset + size, IOMEM_SIZE)\n",
             "        if os.urandom(1)[0] < 85:  # one of three\n"
             "            return\n"
             "        end = min(offset + size, IOMEM_SIZE)\n"),
    ),
    "flaky",
)  # fmt: skip

# The kernel half tells the last slot, the user half reads how many there are. 0, which each side has without the
# other, is neither.
INTERACTION_SLOTS = Commit(
    "abi: Tell which slots are taken, so that readers need not look at all 256",
    (
        Edit("kernel/uapi/unikvm.h", "\t__u64 reserved[4];\n};\n\nstruct unikvm_slot",
             "\t__u64 used;\t\t/* the slots that are taken; 0: look at all */\n"
             "\t__u64 reserved[3];\n};\n\nstruct unikvm_slot"),
        Edit("kernel/uapi/unikvm.h", "#define UNIKVM_ABI_MINOR\t0\n", "#define UNIKVM_ABI_MINOR\t1\n"),
        Edit(ACCOUNTING, "\t\tvcpu = &vm->vcpus[vm->used++];\n",
             "\t\tvcpu = &vm->vcpus[vm->used++];\n\t\tvm->area->used = vm->used - 1;\n"),
        Edit(UAPI, "UNIKVM_ABI_MINOR = 0x0\n", "UNIKVM_ABI_MINOR = 0x1\n"),
        Edit(UAPI, "        lost: int\n", "        lost: int\n        used: int\n"),
        Edit(UAPI, '        ("lost", c.c_uint64),\n        ("reserved", c.c_uint64 * 4),\n',
             '        ("lost", c.c_uint64),\n'
             '        ("used", c.c_uint64),\n'
             '        ("reserved", c.c_uint64 * 3),\n'),
        Edit("tools/kvm/unikvm/sys/companion.py", "for index in range(area.slots):",
             "for index in range(area.used or area.slots):"),
    ),
    "slots",
)  # fmt: skip

# In the way of the search for `rtc-cpus`: the same TEST fails here, too, for another reason.
RTC_CRASH = Commit(
    "rtc: Read from a copy, so that nobody sees half a date",
    (Edit(RTC, "            return self._cmos[index]\n", "            return bytes(self._cmos[:0x40])[index]\n"),),
    "rtc-crash",
)
RTC_CRASH_FIX = Commit(
    "rtc: Let every byte be read again",
    (Edit(RTC, "            return bytes(self._cmos[:0x40])[index]\n", "            return self._cmos[index]\n"),),
    "rtc-crash-fix",
)
RTC_CPUS = Commit(
    "rtc: Have room for CPUs that come later",
    (Edit(RTC, "self._cmos[0x5F] = cpus - 1\n", "self._cmos[0x5F] = max(cpus, 4) - 1\n"),),
    "rtc-cpus",
)

KERNEL_BREAK = Commit(
    "kernel: Give the histogram's index a name",
    (Edit(ACCOUNTING, "min_t(unsigned int, ilog2(ticks | 1), UNIKVM_BUCKETS - 1)", "bucket_of(ticks)"),),
    "kernel-break",
)
KERNEL_FIX = Commit(
    "kernel: Fix the build",
    (Edit(ACCOUNTING, "/* Add the time since the last event to a total", """\
static unsigned int bucket_of(u64 ticks)
{
	return min_t(unsigned int, ilog2(ticks | 1), UNIKVM_BUCKETS - 1);
}

/* Add the time since the last event to a total"""),),
    "kernel-fix",
)  # fmt: skip

_SCHEDULE = "    def schedule(self, seconds: float, callback: Callable[[], object]) -> None"
PYTHON_BREAK = Commit(
    "io: Write timers as the event loop does",
    (Edit("tools/kvm/unikvm/machine/io.py", f"{_SCHEDULE}:\n", f"{_SCHEDULE}\n"),),
    "python-break",
)
PYTHON_FIX = Commit(
    "io: Fix a syntax error",
    (Edit("tools/kvm/unikvm/machine/io.py", f"{_SCHEDULE}\n", f"{_SCHEDULE}:\n"),),
    "python-fix",
)
TRIPLE_FAULT = Commit(
    "vcpu: A triple fault resets a PC",
    (
        Edit(VCPU, "Event, KvmFailure, TripleFault, VmmFailure\n", "Event, KvmFailure, Reset, VmmFailure\n"),
        Edit(VCPU, "return TripleFault(index, rip)\n", 'return Reset(f"triple fault at {rip:#x}")\n'),
    ),
    "triple-fault",
)  # fmt: skip

SEEDS = (
    Seed("double-count", KERNEL_HALF, "accounting.py", "storm.elf",
         "an exit to the user half is counted twice", "double-count"),
    Seed("guest-time", KERNEL_HALF, "guest_time.py", "count.elf",
         "time in the guest is the kernel's; just behind a range that does not compile", "guest-time"),
    Seed("lost-wakeup", KERNEL_HALF, "close.py", "",
         "closing a companion takes 10 s: its wakeup is lost", "lost-wakeup"),
    Seed("leak", KERNEL_HALF, "leak.py", "hello.elf",
         "a refused attachment keeps the module in use", "leak"),
    Seed("boot-register", USER_HALF, "loader.sh", "bootinfo-multiboot.elf",
         "a multiboot payload finds a wrong EAX", "boot-register"),
    Seed("lost-interrupt", USER_HALF, "echo.py", "echo.elf",
         "input on the serial port raises no interrupt; on a side branch", "lost-interrupt"),
    Seed("slots", INTERACTION, "two_vcpus.py", "smp.elf",
         "the halves read a field of the ABI in two ways", "slots"),
    Seed("flaky", USER_HALF, "mmio.sh", "mmio.elf",
         "a write to memory of pc-testdev is lost in one run of three", "flaky",
         good="kernel-fix", bad="python-fix", rate=85 / 256),
    Seed("rtc-cpus", USER_HALF, "cmos.py", "",
         "a wrong byte in the CMOS (status 3), with an unrelated crash (123) in the range", "rtc-cpus",
         signature=r"exit 3:"),
    Seed("rtc-crash", USER_HALF, "cmos.py", "",
         "the crash alone: a defect (123), mended later", "rtc-crash", bad="before rtc-crash-fix",
         signature=r"vmm-error 123: IndexError"),
    Seed("triple-fault", USER_HALF, "triple.sh", "ending.elf",
         "a triple fault is no panic; inside a range with a syntax error", "triple-fault",
         suspects=("python-break", "python-fix")),
)  # fmt: skip

# SPDX-License-Identifier: GPL-2.0-only
# Only delegates: scripts/bootstrap sets up, meson builds, scripts/unikvm runs, pytest tests.
KERNEL =
HOST_KERNEL =
CMD =
MEM =
CPUS =
HOST = auto
PARTS =
V = 0

PYTHON = build/venv/bin/python3
TESTS = tests
# A test run on each CPU (Documentation/tests.md); on eight at most, as each may boot a host VM of a gigabyte or two.
PYTEST = $(PYTHON) -m pytest --numprocesses "$$(nproc)" --maxprocesses 8 --dist worksteal

# What the user typed reaches the shell as variables, so that no quote or semicolon in it is the shell's.
export KERNEL HOST_KERNEL CMD MEM CPUS HOST PARTS V

.PHONY: help setup build kvm-run test check bench clean
.DEFAULT_GOAL = help

help:
	@echo 'make kvm-run   build both halves and run a Linux guest with them (sets up what is missing)'
	@echo 'make test      run every test (sets up what is missing)'
	@echo
	@echo 'make setup     install what the tree needs; names it first'
	@echo 'make build     build both halves'
	@echo 'make check     the quick part of make test: lint, types, unit and style tests'
	@echo 'make bench     measure against QEMU; ratios, and JSON'
	@echo 'make clean     remove build/ (what was downloaded stays in the cache)'
	@echo
	@echo 'KERNEL=        guest kernel: path, .deb, build tree or Debian package (default: Debian'"'"'s cloud kernel)'
	@echo 'HOST_KERNEL=   host kernel, likewise; the kernel half is built for it'
	@echo 'CMD=           command to run in the guest instead of a shell'
	@echo 'MEM= CPUS=     memory (512M, 2G) and CPUs of the guest'
	@echo 'HOST=          auto, local (this machine) or vm (a host VM)'
	@echo 'PARTS=         of make bench: payload boot memory exits bisect block console network files root many'
	@echo 'V=1            show every step and its seconds'

setup:
	@scripts/bootstrap test --again

build:
	@scripts/bootstrap run
	@kernel=$$HOST_KERNEL; \
	if [ "$$HOST" = local ] && [ -z "$$kernel" ]; then kernel=/boot/vmlinuz-$$(uname -r); fi; \
	$(PYTHON) scripts/build $${kernel:+--host-kernel "$$kernel"}

kvm-run: build
	@test "$$V" != 1 || set -- --verbose; \
	scripts/unikvm run --host "$$HOST" $${KERNEL:+--kernel "$$KERNEL"} \
		$${HOST_KERNEL:+--host-kernel "$$HOST_KERNEL"} $${MEM:+--mem "$$MEM"} $${CPUS:+--cpus "$$CPUS"} "$$@" \
		$${CMD:+-- sh -c "$$CMD"}

test:
	@scripts/bootstrap test
	@$(MAKE) --no-print-directory build
	@$(PYTHON) scripts/lint
	@$(PYTEST) $(TESTS)

check:
	@scripts/bootstrap test
	@$(PYTHON) scripts/lint --quick
	@$(PYTEST) tests/unit tests/style

bench:
	@scripts/bootstrap test
	@$(MAKE) --no-print-directory build
	@$(PYTHON) tests/bench/run.py $$PARTS

clean:
	@rm -rf build

// SPDX-License-Identifier: GPL-2.0-only
/*
 * A test in the manner of kvm-unit-tests: what it prints, how it ends, and what it expects of its VMM. The words on
 * its command line say what it does.
 */
#include "payload.h"

#define TESTDEV_PORT	0xe0
#define SKIPPED		(77 >> 1)

static uint32_t tests, failures, skipped;

static void report(int passed, const char *what)
{
	tests++;
	if (!passed)
		failures++;
	print(passed ? "PASS: " : "FAIL: ");
	print(what);
	print("\n");
}

static uint32_t count_cpus(void)
{
	uint32_t eax = 1, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	return ebx >> 16 & 0xff;
}

static void summary(void)
{
	print("SUMMARY: ");
	print_hex(tests);
	print(" tests");
	if (failures)
		print(", failures");
	if (skipped)
		print(", skipped");
	print("\n");
}

int main(void)
{
	report(boot.loader[0] == 'm', "it is loaded by multiboot");
	report(has_word("unittest") || boot.cmdline[0] == '/', "the command line begins with its path");
	if (has_word("register")) {
		outl(TESTDEV_PORT, 0x12345678);
		report(inl(TESTDEV_PORT) == 0x12345678, "the test device keeps what is written");
	}
	if (has_word("memory"))
		report(boot.ram >= (uint64_t)option("mib", 0) << 20, "there is as much memory as it wants");
	if (has_word("cpus"))
		report(count_cpus() >= 2, "there is more than one processor");
	if (has_word("fail"))
		report(0, "it is to fail");
	if (has_word("skip")) {
		print("SKIP: it is to be skipped\n");
		skipped = tests;
	}
	summary();
	if (has_word("crash"))
		asm volatile("lidt 0\n\tint3" : : : "memory");
	while (has_word("hang"))
		;
	return failures ? 1 : skipped ? SKIPPED : 0;
}

/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The ABI between unikvm's kernel half and its user half: declared here and
 * nowhere else. Fixed-width types, explicit padding, everything 64-bit
 * aligned; reserved fields must be zero; structs that may grow carry their
 * size: that in an ioctl's number is not looked at. A change of layout raises
 * UNIKVM_ABI_MAJOR, an addition the minor.
 */
#ifndef _UAPI_UNIKVM_H
#define _UAPI_UNIKVM_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define UNIKVM_ABI_MAJOR	1
#define UNIKVM_ABI_MINOR	0

/* Exits are counted by their hardware reason; without it only in total. */
#define UNIKVM_FEATURE_EXIT_REASONS	(1ULL << 0)

#define UNIKVM_RELEASE_SIZE	64
#define UNIKVM_BUILD_ID_SIZE	20

/*
 * On /dev/unikvm. `size` is that of the caller's struct; fields that the
 * kernel half does not know are zero, fields the caller does not know are
 * not written.
 */
struct unikvm_info {
	__u32 size;
	__u16 abi_major;
	__u16 abi_minor;
	__u64 features;
	__u8 release[UNIKVM_RELEASE_SIZE];	/* the commit, NUL-terminated */
	__u8 build_id[UNIKVM_BUILD_ID_SIZE];	/* SHA-1 of the sources */
	__u8 reserved[4];
};

/*
 * On /dev/unikvm: returns a companion descriptor for a VM of the calling
 * process. One VM of a process can be attached at a time; where the kernel half
 * knows no offset to tell them apart, the others' vCPUs are counted with it.
 */
struct unikvm_attach {
	__u32 size;
	__s32 vm_fd;
	__u32 flags;		/* none are defined */
	__u32 reserved;
};

#define UNIKVM_GET_INFO		_IOWR('U', 0xE0, struct unikvm_info)
#define UNIKVM_ATTACH_VM	_IOW('U', 0xE1, struct unikvm_attach)
/* On a companion: forget all that was counted. */
#define UNIKVM_RESET		_IO('U', 0xE2)

/*
 * What a companion's mmap (offset 0, read-only) shows: an area, then its
 * slots, one for each vCPU in the order of their first entry. Times are TSC
 * ticks. Only the thread that runs the vCPU writes a slot, without a lock.
 */
#define UNIKVM_ISA_UNKNOWN	0
#define UNIKVM_ISA_VMX		1	/* as KVM's tracepoints number them */
#define UNIKVM_ISA_SVM		2

#define UNIKVM_SLOTS		256
#define UNIKVM_BUCKETS		40	/* bucket n: [2^n, 2^(n+1)) ticks */
/*
 * Exit reasons below 0xf0 are indices themselves; SVM's 0x400 to 0x40e have
 * 0xf0 to 0xfe; everything else is UNIKVM_REASON_OTHER.
 */
#define UNIKVM_REASONS		256
#define UNIKVM_REASON_HIGH	0xf0
#define UNIKVM_REASON_OTHER	0xff
#define UNIKVM_USER_REASONS	64	/* KVM_EXIT_..., the last: all others */

struct unikvm_area {
	__u32 size;		/* of this struct */
	__u32 slot_size;
	__u32 slot_offset;	/* of the first slot, from the area's start */
	__u32 slots;		/* how many there are room for */
	__u32 isa;
	__u32 tsc_khz;
	__u64 lost;		/* entries of vCPUs that found no slot */
	__u64 reserved[4];
};

struct unikvm_slot {
	__u64 entries;		/* into the guest; 0: free, or none since a reset */
	__u64 exits;
	__u64 user_exits;	/* to the user half */
	__u64 guest_ticks;
	__u64 kernel_ticks;	/* between an exit and the next entry, or userspace */
	__u64 user_ticks;
	__u64 reserved[2];
	__u64 reason[UNIKVM_REASONS];
	__u64 user_reason[UNIKVM_USER_REASONS];
	__u64 guest_histogram[UNIKVM_BUCKETS];
	__u64 kernel_histogram[UNIKVM_BUCKETS];
	__u64 user_histogram[UNIKVM_BUCKETS];
	__u64 padding[64];	/* to 4,096 bytes */
};

#endif

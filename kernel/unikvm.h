/* SPDX-License-Identifier: GPL-2.0-only */
/* What the files of unikvm.ko share. */
#ifndef _UNIKVM_H
#define _UNIKVM_H

#include <linux/cache.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#include "uapi/unikvm.h"

/*
 * One vCPU as the probes see it: only the thread that runs it changes it, so it
 * has a cache line of its own, and all that an event needs is in that.
 */
struct unikvm_vcpu {
	struct hlist_node node;		/* in the table of vCPUs; under bind_lock */
	const char *cookie;		/* KVM's struct kvm_vcpu: compared, and read from with care */
	const char *vmcb;		/* the last one; what it points to can be read at any time */
	struct unikvm_vm *vm;
	struct unikvm_slot *slot;	/* in the mapped area */
	u64 mark;			/* TSC of the last event; 0: none */
	u32 reason_at;			/* offset of what leads to the exit reason; 0: unknown */
	u8 isa;				/* of its exits; UNIKVM_ISA_UNKNOWN before the first one */
	bool in_user;
} ____cacheline_aligned;

/* One attached VM. It lives as long as its companion file. */
struct unikvm_vm {
	struct hlist_node node;		/* in the table of owners; under bind_lock */
	struct mm_struct *mm;		/* grabbed, so that the pointer is not reused */
	struct file *file;		/* KVM's, held: neither the VM nor a vCPU of it goes before us */
	const void *kvm;		/* KVM's struct kvm: compared, never followed */
	struct unikvm_area *area;	/* what userspace maps */
	unsigned long area_size;
	unsigned int used;		/* slots taken; under bind_lock */
	struct rcu_head rcu;		/* probes may see it until then */
	struct unikvm_vcpu vcpus[UNIKVM_SLOTS];
};

/* An ioctl without its struct's size, which differs in versions of the ABI and is in the struct, too. */
#define UNIKVM_CMD(cmd)	((cmd) & ~IOCSIZE_MASK)

/* companion.c */
int unikvm_attach_vm(void __user *arg);

/* accounting.c */
int accounting_init(void);
void accounting_exit(void);
bool accounting_has_reasons(void);
int accounting_add(struct unikvm_vm *vm);
void accounting_remove(struct unikvm_vm *vm);
void accounting_reset(struct unikvm_vm *vm);

#endif

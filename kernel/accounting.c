// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accounting of exits, from KVM's tracepoints.
 *
 * The tracepoints are found by name in whichever module has them, at load and
 * whenever a module comes; they are given back when it goes. A VM is known by
 * its owner (current->mm: KVM ties vCPU ioctls to it), a vCPU by KVM's pointer,
 * which is compared and never followed, but for the exit reason and for the VM
 * that it belongs to, at the offsets that the user half read from BTF (module
 * parameters), tried with get_kernel_nofault. Threads are of no account: KVM
 * lets one at a time run a vCPU.
 *
 * Locks: probe_mutex protects which tracepoints have probes; it is taken below
 * the tracepoint module list's mutex (in the notifier). bind_lock protects the
 * tables' changes; it is a leaf, and raw, because a vCPU's first entry takes it
 * with preemption disabled. Probes read the tables under RCU, and say so:
 * no tracepoint promises that it calls them with preemption disabled. They do
 * that themselves: the cheapest way to be a reader where RCU is preemptible.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fdtable.h>
#include <linux/hashtable.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/ptrace.h>
#include <linux/rcupdate.h>
#include <linux/sched/task_stack.h>
#include <linux/spinlock.h>
#include <linux/timex.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#include <asm/syscall.h>
#include <uapi/linux/kvm.h>

#include "unikvm.h"

/* Nothing checks that a probe takes what its tracepoint gives; these are the two cases that are known. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "tried with Linux 6.1 and newer: older KVMs trace an exit with other arguments"
#endif
#if defined(CONFIG_CFI_CLANG) || defined(CONFIG_CFI)
#error "CFI would panic at our probes: their arguments are not of KVM's types"
#endif

#define MAX_OFFSET	(1u << 20)	/* far beyond the size of a vCPU */
#define VMCB_EXIT_CODE	0x70		/* AMD APM vol. 2, appendix B */

static unsigned int svm_vmcb;
module_param(svm_vmcb, uint, 0444);
MODULE_PARM_DESC(svm_vmcb, "offset of vmcb in struct vcpu_svm (0: count without reasons)");

static unsigned int vmx_exit_reason;
module_param(vmx_exit_reason, uint, 0444);
MODULE_PARM_DESC(vmx_exit_reason, "offset of exit_reason in struct vcpu_vmx (0: count without reasons)");

static int vcpu_kvm = -1;
module_param(vcpu_kvm, int, 0444);
MODULE_PARM_DESC(vcpu_kvm, "offset of kvm in struct kvm_vcpu (-1: all VMs of a process are counted as one)");

static DEFINE_RAW_SPINLOCK(bind_lock);
static DEFINE_HASHTABLE(owners, 6);	/* unikvm_vm by mm */
static DEFINE_HASHTABLE(vcpus, 8);	/* unikvm_vcpu by KVM's pointer */
/* VMs in the table of owners; without any, the others' exits cost next to nothing. Under bind_lock. */
static unsigned int attached __read_mostly;

/* --- the probes --- */

static struct unikvm_vm *vm_of(const struct mm_struct *mm)
{
	struct unikvm_vm *vm;

	hash_for_each_possible_rcu_notrace(owners, vm, node, (unsigned long)mm)
		if (vm->mm == mm)
			return vm;
	return NULL;
}

static struct unikvm_vcpu *vcpu_of(const void *cookie)
{
	struct unikvm_vcpu *vcpu;

	hash_for_each_possible_rcu_notrace(vcpus, vcpu, node, (unsigned long)cookie)
		/* Counted without BTF, a VM that is not held may have left its pointer to another process. */
		if (vcpu->cookie == cookie && vcpu->vm->mm == current->mm)
			return vcpu;
	return NULL;
}

/* Whether KVM's vCPU is of this VM, and not of another one of its process. */
static bool is_of_vm(const struct unikvm_vm *vm, const char *cookie)
{
	const void *kvm;

	if (vcpu_kvm < 0)
		return true;
	return !get_kernel_nofault(kvm, (const void **)(cookie + vcpu_kvm)) && kvm == vm->kvm;
}

/* Give KVM's vCPU a slot: its first entry. It stays in the table as long as the VM: nobody is led astray by a move. */
static noinline struct unikvm_vcpu *bind(const char *cookie)
{
	struct unikvm_vm *vm = vm_of(current->mm);
	struct unikvm_vcpu *vcpu = NULL;
	unsigned long flags;

	if (!vm || !is_of_vm(vm, cookie))
		return NULL;
	raw_spin_lock_irqsave(&bind_lock, flags);
	if (!hash_hashed(&vm->node)) {
		/* It was removed since it was found. */
	} else if (vm->used < UNIKVM_SLOTS) {
		vcpu = &vm->vcpus[vm->used++];
		vcpu->cookie = cookie;
		vcpu->vmcb = (const char *)vcpu->slot;	/* no VMCB, but there to read */
		hash_add_rcu(vcpus, &vcpu->node, (unsigned long)cookie);
	} else {
		vm->area->lost++;
	}
	raw_spin_unlock_irqrestore(&bind_lock, flags);
	return vcpu;
}

/* Add the time since the last event to a total and its histogram; the new event is at `now`. */
static __always_inline void account(struct unikvm_vcpu *vcpu, u64 now, u64 *total, u64 *histogram)
{
	s64 ticks = now - vcpu->mark;

	if (vcpu->mark) {
		/* Processors' TSCs may differ, and a vCPU moves between them. */
		if (ticks < 0)
			ticks = 0;
		*total += ticks;
		histogram[min_t(unsigned int, ilog2(ticks | 1), UNIKVM_BUCKETS - 1)]++;
	}
	vcpu->mark = now;
}

static __always_inline void count_entry(const void *cookie)
{
	struct unikvm_vcpu *vcpu = vcpu_of(cookie);
	struct unikvm_slot *slot;
	u64 now;

	if (!vcpu) {
		vcpu = bind(cookie);
		if (!vcpu)
			return;
	}
	slot = vcpu->slot;
	slot->entries++;
	now = get_cycles();
	if (vcpu->in_user) {
		vcpu->in_user = false;
		account(vcpu, now, &slot->user_ticks, slot->user_histogram);
	} else {
		account(vcpu, now, &slot->kernel_ticks, slot->kernel_histogram);
	}
}

/*
 * The first exit: whose kind it is of, and where its reason will be. Memory that
 * is there now stays while the vCPU lives, so each exit can read it without a check.
 */
static noinline void learn_isa(struct unikvm_vcpu *vcpu, u32 isa)
{
	u32 offset = isa == UNIKVM_ISA_SVM ? svm_vmcb : isa == UNIKVM_ISA_VMX ? vmx_exit_reason : 0;
	u64 word;

	vcpu->isa = isa;
	vcpu->vm->area->isa = isa;
	if (offset && !get_kernel_nofault(word, (const u64 *)(vcpu->cookie + offset)))
		vcpu->reason_at = offset;
}

/*
 * Whether this can be a VMCB: a page of memory, which is there to read. It stays
 * so, in use or not, so an exit needs no check while the VMCB is the same:
 * get_kernel_nofault was half of what accounting cost. (Nested guests have two.)
 */
static noinline bool learn_vmcb(struct unikvm_vcpu *vcpu, const char *vmcb)
{
	u32 code;

	if (!PAGE_ALIGNED(vmcb) || !virt_addr_valid(vmcb) ||
	    get_kernel_nofault(code, (const u32 *)(vmcb + VMCB_EXIT_CODE)))
		return false;
	vcpu->vmcb = vmcb;
	return true;
}

static __always_inline unsigned int exit_reason(struct unikvm_vcpu *vcpu, u32 isa)
{
	const char *vmcb, *at;
	u32 code;

	if (unlikely(vcpu->isa != isa))
		learn_isa(vcpu, isa);
	if (unlikely(!vcpu->reason_at))
		return UNIKVM_REASON_OTHER;
	at = vcpu->cookie + vcpu->reason_at;
	if (isa == UNIKVM_ISA_SVM) {
		vmcb = READ_ONCE(*(const char *const *)at);
		if (unlikely(vmcb != vcpu->vmcb) && !learn_vmcb(vcpu, vmcb))
			return UNIKVM_REASON_OTHER;
		code = READ_ONCE(*(const u32 *)(vmcb + VMCB_EXIT_CODE));
		if (code >= 0x400 && code < 0x40f)
			return UNIKVM_REASON_HIGH + (code - 0x400);
	} else {
		code = READ_ONCE(*(const u32 *)at) & 0xffff;	/* the basic reason */
	}
	return code < UNIKVM_REASON_HIGH ? code : UNIKVM_REASON_OTHER;
}

static __always_inline void count_exit(const void *cookie, u32 isa)
{
	u64 now = get_cycles();
	struct unikvm_vcpu *vcpu = vcpu_of(cookie);
	struct unikvm_slot *slot;

	if (!vcpu)
		return;
	slot = vcpu->slot;
	account(vcpu, now, &slot->guest_ticks, slot->guest_histogram);
	slot->exits++;
	slot->reason[exit_reason(vcpu, isa)]++;
}

/*
 * The vCPU that KVM_RUN is called on, of which its tracepoint says nothing: the
 * private data of the ioctl's file. Another thread may have closed that, or put
 * another file in its place; then it is no vCPU, or one of the same process.
 */
static const void *vcpu_of_ioctl(void)
{
	unsigned long arguments[6];
	const struct file *file;

	syscall_get_arguments(current, current_pt_regs(), arguments);
	file = files_lookup_fd_raw(current->files, arguments[0]);
	return file ? file->private_data : NULL;
}

static __always_inline void count_user_exit(u32 reason, int error)
{
	struct unikvm_vcpu *vcpu = vcpu_of(vcpu_of_ioctl());
	struct unikvm_slot *slot;

	if (!vcpu)
		return;
	slot = vcpu->slot;
	/* Without an entry since the last one, the time until now stays the user half's. */
	if (!vcpu->in_user)
		account(vcpu, get_cycles(), &slot->kernel_ticks, slot->kernel_histogram);
	vcpu->in_user = true;
	if (error == -EINTR)
		reason = KVM_EXIT_INTR;
	slot->user_exits++;
	slot->user_reason[min_t(u32, reason, UNIKVM_USER_REASONS - 1)]++;
}

static void probe_entry(void *data, const void *cookie)
{
	if (!READ_ONCE(attached))
		return;
	rcu_read_lock_sched_notrace();
	count_entry(cookie);
	rcu_read_unlock_sched_notrace();
}

static void probe_exit(void *data, const void *cookie, u32 isa)
{
	if (!READ_ONCE(attached))
		return;
	rcu_read_lock_sched_notrace();
	count_exit(cookie, isa);
	rcu_read_unlock_sched_notrace();
}

static void probe_user_exit(void *data, u32 reason, int error)
{
	if (!READ_ONCE(attached))
		return;
	rcu_read_lock_sched_notrace();
	count_user_exit(reason, error);
	rcu_read_unlock_sched_notrace();
}

/* --- attached VMs --- */

bool accounting_has_reasons(void)
{
	return svm_vmcb || vmx_exit_reason;
}

int accounting_add(struct unikvm_vm *vm)
{
	unsigned long flags;
	int ret = 0;

	raw_spin_lock_irqsave(&bind_lock, flags);
	if (vm_of(vm->mm)) {
		ret = -EBUSY;
	} else {
		hash_add_rcu(owners, &vm->node, (unsigned long)vm->mm);
		WRITE_ONCE(attached, attached + 1);
	}
	raw_spin_unlock_irqrestore(&bind_lock, flags);
	return ret;
}

/*
 * After this no probe finds `vm`, and no vCPU is bound to what is not in the table
 * of owners; one that had found it may go on until a grace period is over.
 */
void accounting_remove(struct unikvm_vm *vm)
{
	unsigned long flags;
	unsigned int i;

	raw_spin_lock_irqsave(&bind_lock, flags);
	WRITE_ONCE(attached, attached - 1);
	hash_del_rcu(&vm->node);
	for (i = 0; i < vm->used; i++)
		hash_del_rcu(&vm->vcpus[i].node);
	raw_spin_unlock_irqrestore(&bind_lock, flags);
}

/* A vCPU that runs meanwhile may keep some of what it counts just then. */
void accounting_reset(struct unikvm_vm *vm)
{
	unsigned int i;

	for (i = 0; i < READ_ONCE(vm->used); i++)
		memset(vm->vcpus[i].slot, 0, sizeof(struct unikvm_slot));
	vm->area->lost = 0;
}

/* --- the tracepoints --- */

static struct probe {
	const char *name;
	void *function;
	struct tracepoint *found;	/* NULL: no module has it */
	bool registered;
} probes[] = {
	{ "kvm_entry", probe_entry },
	{ "kvm_exit", probe_exit },
	{ "kvm_userspace_exit", probe_user_exit },
};

static DEFINE_MUTEX(probe_mutex);

static void probes_register(struct work_struct *work)
{
	struct probe *probe;
	int ret;

	mutex_lock(&probe_mutex);
	for (probe = probes; probe < probes + ARRAY_SIZE(probes); probe++) {
		if (!probe->found || probe->registered)
			continue;
		ret = tracepoint_probe_register(probe->found, probe->function, NULL);
		if (ret)
			pr_warn("no probe at %s: error %d\n", probe->name, ret);
		else
			probe->registered = true;
	}
	mutex_unlock(&probe_mutex);
}

/* Registering wants a mutex that the notifier's caller may hold: it is done outside. */
static DECLARE_WORK(register_work, probes_register);

static void probe_found(struct tracepoint *tp, void *unused)
{
	struct probe *probe;

	for (probe = probes; probe < probes + ARRAY_SIZE(probes); probe++)
		if (!strcmp(probe->name, tp->name))
			probe->found = tp;
}

static void probe_lost(struct tracepoint *tp)
{
	struct probe *probe;

	for (probe = probes; probe < probes + ARRAY_SIZE(probes); probe++) {
		if (probe->found != tp)
			continue;
		if (probe->registered)
			tracepoint_probe_unregister(tp, probe->function, NULL);
		probe->registered = false;
		probe->found = NULL;
	}
}

static int module_notify(struct notifier_block *block, unsigned long state, void *data)
{
	struct module *module = ((struct tp_module *)data)->mod;
	unsigned int i;

	mutex_lock(&probe_mutex);
	for (i = 0; i < module->num_tracepoints; i++) {
		struct tracepoint *tp = tracepoint_ptr_deref(&module->tracepoints_ptrs[i]);

		if (state == MODULE_STATE_GOING)
			probe_lost(tp);
		else
			probe_found(tp, NULL);
	}
	mutex_unlock(&probe_mutex);
	if (state == MODULE_STATE_COMING)
		schedule_work(&register_work);
	return NOTIFY_OK;
}

static struct notifier_block module_block = {
	.notifier_call = module_notify,
};

int accounting_init(void)
{
	int ret;

	if (svm_vmcb > MAX_OFFSET || vmx_exit_reason > MAX_OFFSET || vcpu_kvm > (int)MAX_OFFSET) {
		pr_err("an offset of more than %u is not one in a vCPU\n", MAX_OFFSET);
		return -EINVAL;
	}
	/* KVM may be built in, loaded (the notifier is told of what is there), or come later. */
	for_each_kernel_tracepoint(probe_found, NULL);
	ret = register_tracepoint_module_notifier(&module_block);
	if (ret)
		return ret;
	flush_work(&register_work);
	probes_register(NULL);
	return 0;
}

void accounting_exit(void)
{
	struct probe *probe;

	unregister_tracepoint_module_notifier(&module_block);
	cancel_work_sync(&register_work);
	mutex_lock(&probe_mutex);
	for (probe = probes; probe < probes + ARRAY_SIZE(probes); probe++)
		if (probe->registered)
			tracepoint_probe_unregister(probe->found, probe->function, NULL);
	mutex_unlock(&probe_mutex);
	tracepoint_synchronize_unregister();
}

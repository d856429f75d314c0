// SPDX-License-Identifier: GPL-2.0-only
/*
 * The companion of a VM: a file that only the VM's own process can use, and
 * that shows what the VM's vCPUs do.
 */
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <asm/tsc.h>
#include <uapi/linux/kvm.h>

#include "unikvm.h"

/* The door of every operation on a companion: a child of fork, or whoever was sent the descriptor, is not the owner. */
static bool is_owner(const struct unikvm_vm *vm)
{
	return current->mm == vm->mm;
}

static long companion_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct unikvm_vm *vm = file->private_data;

	if (!is_owner(vm))
		return -EPERM;
	switch (cmd) {
	case UNIKVM_RESET:
		accounting_reset(vm);
		return 0;
	default:
		return -ENOTTY;
	}
}

static int companion_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct unikvm_vm *vm = file->private_data;

	if (!is_owner(vm))
		return -EPERM;
	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EPERM;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_mod(vma, VM_DONTCOPY | VM_DONTEXPAND, VM_MAYWRITE | VM_MAYEXEC);
#else
	vma->vm_flags |= VM_DONTCOPY | VM_DONTEXPAND;
	vma->vm_flags &= ~(VM_MAYWRITE | VM_MAYEXEC);
#endif
	/* Checks offset and length against the area. */
	return remap_vmalloc_range(vma, vm->area, vma->vm_pgoff);
}

static void vm_free_rcu(struct rcu_head *head)
{
	struct unikvm_vm *vm = container_of(head, struct unikvm_vm, rcu);

	vfree(vm->area);
	kvfree(vm);
}

/*
 * A probe that still sees `vm` runs on a vCPU that its own KVM_RUN holds: KVM's
 * file and the address space can go at once. To wait for the probes here would
 * be most of the time that a small guest's end takes.
 */
static void vm_free(struct unikvm_vm *vm)
{
	fput(vm->file);
	mmdrop(vm->mm);
	call_rcu(&vm->rcu, vm_free_rcu);
}

static int companion_release(struct inode *inode, struct file *file)
{
	struct unikvm_vm *vm = file->private_data;

	accounting_remove(vm);
	vm_free(vm);
	return 0;
}

/* The owner keeps the module loaded while a companion is open. */
static const struct file_operations companion_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = companion_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = companion_mmap,
	.release = companion_release,
	.llseek = noop_llseek,
};

/*
 * Whether `file` is a VM of KVM, told without KVM's symbols: an anonymous
 * inode's file (no user can name or make one) that KVM calls "kvm-vm".
 */
static bool is_kvm_vm(const struct file *file)
{
	return !strcmp(file_inode(file)->i_sb->s_type->name, "anon_inodefs") &&
	       !strcmp(file->f_path.dentry->d_name.name, "kvm-vm") &&
	       file->f_op->unlocked_ioctl;
}

/* KVM itself refuses every ioctl on a VM to all but the process that made it. */
static bool is_own_vm(struct file *file)
{
	return file->f_op->unlocked_ioctl(file, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) > 0;
}

/* The file of the caller's own VM `fd`, held. */
static struct file *get_vm_file(int fd)
{
	struct file *file = fget(fd);
	int ret;

	if (!file)
		return ERR_PTR(-EBADF);
	if (!is_kvm_vm(file))
		ret = -EINVAL;
	else if (!is_own_vm(file))
		ret = -EPERM;
	else
		return file;
	fput(file);
	return ERR_PTR(ret);
}

/* Takes over the reference to `file`, but on failure. */
static struct unikvm_vm *vm_alloc(struct file *file)
{
	struct unikvm_vm *vm = kvzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	int i;

	if (!vm)
		return NULL;
	vm->area_size = PAGE_SIZE + UNIKVM_SLOTS * sizeof(struct unikvm_slot);
	vm->area = vmalloc_user(vm->area_size);
	if (!vm->area) {
		kvfree(vm);
		return NULL;
	}
	vm->area->size = sizeof(*vm->area);
	vm->area->slot_size = sizeof(struct unikvm_slot);
	vm->area->slot_offset = PAGE_SIZE;
	vm->area->slots = UNIKVM_SLOTS;
	vm->area->tsc_khz = tsc_khz;
	for (i = 0; i < UNIKVM_SLOTS; i++) {
		vm->vcpus[i].vm = vm;
		vm->vcpus[i].slot = (void *)vm->area + PAGE_SIZE + i * sizeof(struct unikvm_slot);
	}
	vm->file = file;
	vm->kvm = file->private_data;
	vm->mm = current->mm;
	mmgrab(vm->mm);
	return vm;
}

int unikvm_attach_vm(void __user *arg)
{
	struct unikvm_attach attach;
	struct unikvm_vm *vm;
	struct file *file;
	u32 size;
	int ret;

	if (get_user(size, (u32 __user *)arg))
		return -EFAULT;
	if (size < sizeof(attach) || size > PAGE_SIZE)
		return -EINVAL;
	/* E2BIG where a newer caller sets what this module does not know. */
	ret = copy_struct_from_user(&attach, sizeof(attach), arg, size);
	if (ret)
		return ret;
	if (attach.flags || attach.reserved)
		return -EINVAL;
	file = get_vm_file(attach.vm_fd);
	if (IS_ERR(file))
		return PTR_ERR(file);
	vm = vm_alloc(file);
	if (!vm) {
		fput(file);
		return -ENOMEM;
	}
	ret = accounting_add(vm);
	if (ret)
		goto err_free;
	ret = anon_inode_getfd("unikvm-companion", &companion_fops, vm, O_RDWR | O_CLOEXEC);
	if (ret < 0)
		goto err_remove;
	return ret;

err_remove:
	accounting_remove(vm);
err_free:
	vm_free(vm);
	return ret;
}

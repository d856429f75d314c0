// SPDX-License-Identifier: GPL-2.0-only
/*
 * unikvm: the kernel half. It faces KVM through its tracepoints alone and
 * needs none of its headers and symbols, so it builds and loads beside any
 * KVM, and KVM comes and goes as it likes.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/uaccess.h>

#include "release.h"	/* made by scripts/build-module */
#include "unikvm.h"

static_assert(sizeof(struct unikvm_info) == 104);
static_assert(sizeof(struct unikvm_attach) == 16);
static_assert(sizeof(struct unikvm_area) % 8 == 0);
static_assert(sizeof(struct unikvm_slot) == 4096);

static int unikvm_get_info(struct unikvm_info __user *arg)
{
	struct unikvm_info info = {
		.abi_major = UNIKVM_ABI_MAJOR,
		.abi_minor = UNIKVM_ABI_MINOR,
		.release = UNIKVM_RELEASE,
		.build_id = UNIKVM_BUILD_ID,
	};
	u32 size;

	if (get_user(size, &arg->size))
		return -EFAULT;
	/* Up to the release every caller knows the struct: less is a mistake. */
	if (size < offsetofend(struct unikvm_info, build_id) || size > PAGE_SIZE)
		return -EINVAL;
	info.size = sizeof(info);
	if (accounting_has_reasons())
		info.features |= UNIKVM_FEATURE_EXIT_REASONS;
	if (copy_to_user(arg, &info, min_t(size_t, size, sizeof(info))))
		return -EFAULT;
	if (size > sizeof(info) &&
	    clear_user((void __user *)arg + sizeof(info), size - sizeof(info)))
		return -EFAULT;
	return 0;
}

static long unikvm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	switch (UNIKVM_CMD(cmd)) {	/* dispatch only */
	case UNIKVM_CMD(UNIKVM_GET_INFO):
		return unikvm_get_info((void __user *)arg);
	case UNIKVM_CMD(UNIKVM_ATTACH_VM):
		return unikvm_attach_vm((void __user *)arg);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations unikvm_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = unikvm_ioctl,
	.compat_ioctl = compat_ptr_ioctl,	/* the structs are the same for 32-bit programs */
};

static struct miscdevice unikvm_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "unikvm",
	.mode = 0600,
	.fops = &unikvm_fops,
};

static int __init unikvm_init(void)
{
	int ret = accounting_init();

	if (ret)
		return ret;
	ret = misc_register(&unikvm_misc);
	if (ret) {
		accounting_exit();
		return ret;
	}
	pr_info("%s, ABI %u.%u\n", UNIKVM_RELEASE, UNIKVM_ABI_MAJOR, UNIKVM_ABI_MINOR);
	return 0;
}

static void __exit unikvm_exit(void)
{
	misc_deregister(&unikvm_misc);
	accounting_exit();
	rcu_barrier();		/* companions that were closed are freed by our code */
}

module_init(unikvm_init);
module_exit(unikvm_exit);

MODULE_DESCRIPTION("unikvm, the kernel half");
MODULE_VERSION(UNIKVM_RELEASE);
MODULE_LICENSE("GPL");

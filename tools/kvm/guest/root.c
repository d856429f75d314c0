// SPDX-License-Identifier: GPL-2.0-only
/* The shared root: a file system of the machine, read-only, under a tmpfs overlay that forgets. */
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOWER		"/unikvm/lower"
#define UPPER		"/unikvm/upper"
#define ROOT		"/unikvm/root"
#define MOUNT_PATIENCE	10000	/* ms that a hot-plugged device may take to come up */
#define MOUNT_NAP	5000	/* us between two looks */

static const char *failed(const char *what)
{
	static char why[512];

	snprintf(why, sizeof(why), "%.400s: %s", what, strerror(errno));
	return why;
}

/* How many devices a virtio driver has: the kernel log gets no line of complaint for each look, unlike for a mount. */
static int devices_of(const char *driver)
{
	char path[128];
	struct dirent *entry;
	int count = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/bus/virtio/drivers/%s", driver);
	dir = opendir(path);
	if (!dir)
		return -1;
	while ((entry = readdir(dir)))
		count += !strncmp(entry->d_name, "virtio", 6);
	closedir(dir);
	return count;
}

/*
 * Mount a shared file system whose device may still be on its way: it was
 * plugged a moment ago. First its driver gets one more device than there are
 * mounts, then the tag is known; until then the errors are EINVAL (virtiofs)
 * and ENOENT (9p).
 */
static int mount_plugged(const char *fstype, const char *tag, const char *where,
			 unsigned long flags, const char *options)
{
	const char *driver = strcmp(fstype, "9p") ? fstype : "9pnet_virtio";
	long long deadline = now_ms() + MOUNT_PATIENCE;
	static int mounted;
	int devices;

	for (;;) {
		devices = devices_of(driver);
		if (devices < 0 || devices > mounted) {
			if (!mount(tag, where, fstype, flags, options)) {
				mounted++;
				return 0;
			}
			if (errno != EINVAL && errno != ENOENT)
				return -1;
		}
		if (now_ms() >= deadline) {
			if (devices == mounted)
				errno = ENODEV;
			return -1;
		}
		nap(MOUNT_NAP);
	}
}

/* Take the mounts that init made along, and make the overlay the root of everything started from now on. */
static const char *enter_root(void)
{
	static const char *const keep[] = { "/proc", "/sys", "/dev", "/run" };
	char target[64];
	size_t i;

	for (i = 0; i < sizeof(keep) / sizeof(keep[0]); i++) {
		snprintf(target, sizeof(target), ROOT "%s", keep[i]);
		mkdir(target, 0755);
		if (mount(keep[i], target, NULL, MS_MOVE, NULL))
			return failed(target);
	}
	/* The initramfs cannot be pivoted away from: move the new root over it, as switch_root does. */
	if (chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		return failed(ROOT);
	return NULL;
}

/* What a KVM developer expects of a running system; a kernel without one of them is no error. */
static void extra_mounts(void)
{
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	mkdir("/dev/shm", 01777);
	mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
}

/*
 * Mount the overlay, without CAP_FOWNER where the file server is not root on
 * the machine. overlayfs keeps the mounter's credentials, and with that
 * capability opens every lower file with O_NOATIME, which the machine then
 * refuses for all files that are not the server's own.
 */
static int mount_overlay(bool foreign)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];
	int failed = 0;

	if (syscall(SYS_capget, &header, caps))
		return -1;
	caps[0].effective &= foreign ? ~(1u << CAP_FOWNER) : ~0u;
	if (syscall(SYS_capset, &header, caps))
		return -1;
	if (mount("overlay", ROOT, "overlay", 0,
		  "lowerdir=" LOWER ",upperdir=" UPPER "/upper,workdir=" UPPER "/work"))
		failed = errno;
	caps[0].effective |= 1u << CAP_FOWNER;
	if (syscall(SYS_capset, &header, caps) && !failed)
		failed = errno;
	errno = failed;
	return failed ? -1 : 0;
}

const char *root_mount(const char *fstype, const char *tag, const char *options, bool foreign)
{
	const char *why;

	mkdir("/unikvm", 0755);
	mkdir(LOWER, 0755);
	mkdir(UPPER, 0755);
	mkdir(ROOT, 0755);
	if (mount_plugged(fstype, tag, LOWER, MS_RDONLY, options))
		return failed(fstype);
	if (mount("tmpfs", UPPER, "tmpfs", 0, "mode=0755"))
		return failed(UPPER);
	if (mkdir(UPPER "/upper", 0755) || mkdir(UPPER "/work", 0755))
		return failed(UPPER);
	if (mount_overlay(foreign))
		return failed("overlay");
	why = enter_root();
	if (why)
		return why;
	extra_mounts();
	net_resolver();
	return NULL;
}

/* The modules of the running kernel from where they are in the root to where they are looked for. */
const char *bind_mount(const char *source, const char *path)
{
	if (path[0] != '/' || !make_dirs(path) || mount(source, path, NULL, MS_BIND, NULL))
		return failed(path);
	return NULL;
}

const char *share_mount(const char *fstype, const char *tag, const char *path,
			const char *options)
{
	if (path[0] != '/' || !make_dirs(path))
		return failed(path);
	return mount_plugged(fstype, tag, path, 0, options) ? failed(path) : NULL;
}

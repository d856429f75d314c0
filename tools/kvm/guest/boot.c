// SPDX-License-Identifier: GPL-2.0-only
/* From the kernel's hand-over to a system that can run commands: mounts, console, modules, applets. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODULES_LIST		"/unikvm/modules.list"
#define COMPRESSED_MODULE	4	/* MODULE_INIT_COMPRESSED_FILE, Linux 5.17 */

static void mount_one(const char *type, const char *where, unsigned long flags,
		      const char *data)
{
	mkdir(where, 0755);
	if (mount(type, where, type, flags, data))
		complain("mount %s: %s", where, strerror(errno));
}

static void node(const char *path, unsigned int major, unsigned int minor)
{
	if (mknod(path, S_IFCHR | 0600, makedev(major, minor)) && errno != EEXIST)
		complain("mknod %s: %s", path, strerror(errno));
}

/* Standard descriptors, where the initramfs had no /dev/console for the kernel to open. */
static void stdio(void)
{
	int fd;

	if (fcntl(STDERR_FILENO, F_GETFD) >= 0)
		return;
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd < 0)	/* console=none: complaints then go nowhere, nothing else changes */
		fd = open("/dev/null", O_RDWR);
	if (fd < 0)
		return;
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

static void link_to(const char *target, const char *path)
{
	if (symlink(target, path) && errno != EEXIST)
		complain("symlink %s: %s", path, strerror(errno));
}

void boot_mounts(void)
{
	const unsigned long hard = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	mkdir("/dev", 0755);
	if (mount("dev", "/dev", "devtmpfs", MS_NOSUID, NULL)) {
		/* A kernel without devtmpfs: the nodes that init itself needs. */
		mount_one("tmpfs", "/dev", MS_NOSUID, "mode=0755");
		node("/dev/console", 5, 1);
		node("/dev/null", 1, 3);
		node("/dev/zero", 1, 5);
		node("/dev/urandom", 1, 9);
		node("/dev/tty", 5, 0);
		node("/dev/ptmx", 5, 2);
	}
	link_to("/proc/self/fd", "/dev/fd");
	link_to("/proc/self/fd/0", "/dev/stdin");
	link_to("/proc/self/fd/1", "/dev/stdout");
	link_to("/proc/self/fd/2", "/dev/stderr");
	stdio();
	mount_one("proc", "/proc", hard, NULL);
	mount_one("sysfs", "/sys", hard, NULL);
	mount_one("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_one("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
	mkdir("/tmp", 0700);
	chmod("/tmp", 01777);		/* which no umask makes less of */
}

/* A host's guests with shared directories have shared memory: let it be in huge pages, as all other memory is. */
void boot_host(void)
{
	int fd = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;		/* a kernel without: slower */
	if (write(fd, "advise", 6) != 6)
		complain("shmem_enabled: %s", strerror(errno));
	close(fd);
}

/* Insert one module; NULL, or what went wrong. One that is there already is fine. */
const char *module_insert(const char *path, const char *params)
{
	static char why[512];
	const char *dot = strrchr(path, '.');
	int flags = dot && strcmp(dot, ".ko") ? COMPRESSED_MODULE : 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int failed = 0;

	if (fd < 0)
		failed = errno;
	else if (syscall(SYS_finit_module, fd, params, flags) && errno != EEXIST)
		failed = errno;
	if (fd >= 0)
		close(fd);
	if (!failed)
		return NULL;
	snprintf(why, sizeof(why), "module %s: %s", path, strerror(failed));
	return why;
}

/* Each line of the list: PATH [PARAMETER...] */
static void insert_line(char *line)
{
	char *params = strchr(line, ' ');
	const char *why;

	if (params)
		*params++ = '\0';
	why = module_insert(line, params ? params : "");
	if (why)
		complain("%s", why);
}

void boot_modules(void)
{
	int fd = open(MODULES_LIST, O_RDONLY | O_CLOEXEC);
	char *list, *line, *end;
	struct stat st;
	ssize_t len;

	if (fd < 0) {
		if (errno != ENOENT)
			complain("%s: %s", MODULES_LIST, strerror(errno));
		return;
	}
	if (fstat(fd, &st)) {
		complain("%s: %s", MODULES_LIST, strerror(errno));
		close(fd);
		return;
	}
	list = grow(NULL, st.st_size + 1);
	len = read(fd, list, st.st_size);
	close(fd);
	list[len < 0 ? 0 : len] = '\0';
	for (line = list; *line; line = end) {
		end = strchrnul(line, '\n');
		if (*end)
			*end++ = '\0';
		if (*line)
			insert_line(line);
	}
	free(list);
}

/* Make busybox's applet links where the initramfs brought busybox without them. */
void boot_applets(void)
{
	pid_t pid;
	int status;

	if (access("/bin/busybox", X_OK) || !access("/bin/sh", F_OK))
		return;
	pid = fork();
	if (!pid) {
		execl("/bin/busybox", "busybox", "--install", "-s", "/bin", NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		complain("busybox --install failed");
}

/*
 * Open the tty behind /dev/console: unlike /dev/console it can be a
 * controlling terminal. The last one listed is the one /dev/console means.
 */
int console_open(int flags)
{
	char names[256], path[300], *name;

	if (read_file("/sys/class/tty/console/active", names, sizeof(names)) <= 0)
		return open("/dev/console", flags);
	name = strrchr(names, ' ');
	snprintf(path, sizeof(path), "/dev/%s", name ? name + 1 : names);
	return open(path, flags);
}

// SPDX-License-Identifier: GPL-2.0-only
/* virtio-serial ports, found by their names (virtio 1.2 section 5.3.6: VIRTIO_CONSOLE_PORT_NAME). */
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PORTS_DIR	"/sys/class/virtio-ports"
#define PORTS_NAP	500	/* us between two looks */

int port_fd[PORT_COUNT] = { -1, -1, -1, -1 };

static const char *const port_name[PORT_COUNT] = {
	"unikvm.ctl", "unikvm.stdin", "unikvm.stdout", "unikvm.stderr",
};

bool wait_fd(int fd, short events, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = events };
	int n;

	do {
		n = poll(&pfd, 1, timeout_ms);
	} while (n < 0 && errno == EINTR);
	return n > 0;
}

/* Make the node of a port where the kernel has no devtmpfs. */
static void port_node(const char *device, const char *path)
{
	unsigned int major, minor;
	char attr[300], dev[32];

	if (!access(path, F_OK))
		return;
	snprintf(attr, sizeof(attr), PORTS_DIR "/%s/dev", device);
	if (read_file(attr, dev, sizeof(dev)) > 0 && sscanf(dev, "%u:%u", &major, &minor) == 2)
		mknod(path, S_IFCHR | 0600, makedev(major, minor));
}

static int open_named(const char *name)
{
	char attr[300], found[64], path[300];
	struct dirent *entry;
	int fd = -1;
	DIR *dir;

	dir = opendir(PORTS_DIR);
	if (!dir)
		return -1;
	while (fd < 0 && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(attr, sizeof(attr), PORTS_DIR "/%s/name", entry->d_name);
		if (read_file(attr, found, sizeof(found)) < 0 || strcmp(found, name))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		port_node(entry->d_name, path);
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	closedir(dir);
	return fd;
}

/*
 * The name of a port arrives before the news that its other end is open; until
 * then reads return 0 and polls POLLHUP, as if it had been closed.
 */
static bool connected(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 0) >= 0 && !(pfd.revents & POLLHUP);
}

bool port_open(enum port port, int patience_ms)
{
	long long deadline = now_ms() + patience_ms;
	int *fd = &port_fd[port];

	while (*fd < 0 || !connected(*fd)) {
		if (*fd < 0)
			*fd = open_named(port_name[port]);
		if (*fd >= 0 && connected(*fd))
			break;
		if (now_ms() >= deadline) {
			complain("no port %s after %d s%s", port_name[port], patience_ms / 1000,
				 *fd < 0 ? ": is virtio_console in this kernel or its initramfs?"
					 : ": its other end is not open");
			return false;
		}
		nap(PORTS_NAP);
	}
	return true;
}

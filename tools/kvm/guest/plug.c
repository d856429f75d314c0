// SPDX-License-Identifier: GPL-2.0-only
/*
 * CPUs that are offline until somebody wants them. Those that come while the guest runs (`unikvm.plug` on the kernel's
 * command line): distributions have udev for that; a guest without one has a process of its own. And those that the
 * kernel was told to leave alone (`maxcpus=`, and `unikvm.cpus` for here).
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define KERNEL_EVENTS	1	/* the multicast group of the kernel's own messages */

static void put_online(int sys, const char *devpath)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/online", devpath + 1);
	fd = openat(sys, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1)
		complain("%s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* ACTION@DEVPATH, then KEY=VALUE strings, each with its NUL. */
static void watch(int events, int sys)
{
	char message[4096];
	const char *at, *action, *subsystem, *devpath;
	ssize_t len;

	for (;;) {
		len = recv(events, message, sizeof(message) - 1, 0);
		if (len < 0 && errno != EINTR && errno != ENOBUFS)
			_exit(1);
		if (len <= 0)
			continue;
		message[len] = '\0';
		action = subsystem = devpath = "";
		for (at = message; at < message + len; at += strlen(at) + 1) {
			if (!strncmp(at, "ACTION=", 7))
				action = at + 7;
			else if (!strncmp(at, "SUBSYSTEM=", 10))
				subsystem = at + 10;
			else if (!strncmp(at, "DEVPATH=", 8))
				devpath = at + 8;
		}
		if (!strcmp(action, "add") && !strcmp(subsystem, "cpu") && devpath[0] == '/')
			put_online(sys, devpath);
	}
}

static void put_all_online(int sys)
{
	char devpath[64];
	int cpu;

	for (cpu = 1;; cpu++) {
		snprintf(devpath, sizeof(devpath), "/devices/system/cpu/cpu%d", cpu);
		if (faccessat(sys, devpath + 1, F_OK, 0))
			return;
		put_online(sys, devpath);
	}
}

static void start_watching(int sys)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = KERNEL_EVENTS };
	int events;
	pid_t pid;

	/* Bound before anything can come. */
	events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	if (events < 0 || bind(events, (struct sockaddr *)&address, sizeof(address))) {
		complain("no news of what comes: %s", strerror(errno));
	} else {
		pid = fork();
		if (!pid) {
			prctl(PR_SET_NAME, "plug");
			watch(events, sys);
		}
		if (pid < 0)
			complain("fork: %s", strerror(errno));
	}
	close(events);
}

void plug_start(void)
{
	char value[8];
	int sys = open("/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);	/* before the guest gets another root */

	if (sys < 0) {
		complain("/sys: %s", strerror(errno));
		return;
	}
	if (cmdline_value("unikvm.cpus", value, sizeof(value)))
		put_all_online(sys);
	if (cmdline_value("unikvm.plug", value, sizeof(value)))
		start_watching(sys);
	close(sys);
}

/* SPDX-License-Identifier: GPL-2.0-only */
/* An `exec` line as it was asked for, and the process it becomes. */
#ifndef UNIKVM_ORDER_H
#define UNIKVM_ORDER_H

#include "init.h"

#include <sys/ioctl.h>

enum tty { TTY_NONE, TTY_PTY, TTY_CONSOLE };

#define MAX_GROUPS	64

struct order {
	enum tty tty;
	bool as_user;		/* else as root, with what init has */
	uid_t uid;
	gid_t gid, groups[MAX_GROUPS];	/* the first group is gid */
	int ngroups;
	struct winsize size;
	const char *cwd;
	char **env, **argv;
};

/*
 * Parse the words of an `exec` line, which they then belong to; order->env is to
 * be freed. NULL, or what is wrong with it.
 */
const char *order_parse(struct words *words, struct order *order);
/*
 * Fork and exec on descriptors: three, or for a tty one that becomes the
 * controlling terminal. 0, or the errno of what failed on the way.
 */
int order_spawn(const struct order *order, const int fds[3], pid_t *pid);

#endif

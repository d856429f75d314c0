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
	const char *cwd;	/* NULL: not asked for */
	const char *program;	/* NULL: argv[0] */
	char **env, **argv;
};

/*
 * Parse the words of an `exec` line, which they then belong to; order->env is to
 * be freed. NULL, or what is wrong with it.
 */
const char *order_parse(struct words *words, struct order *order);
/*
 * What a command's standard descriptors lead to, non-blocking on our side: `theirs`
 * are the command's, ours[0] feeds it, ours[1] and ours[2] are what it says. 0, or an
 * errno; what was opened before it is in the arrays, the rest of them is -1.
 */
int order_pipes(int theirs[3], int ours[3]);
/* The same with a pty: the command's side in theirs[0]. */
int order_pty(const struct winsize *size, int theirs[3], int *master);
/*
 * Fork and exec on descriptors: three, or for a tty one that becomes the
 * controlling terminal. 0, or the errno of what failed on the way.
 */
int order_spawn(const struct order *order, const int fds[3], pid_t *pid);

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* Who a command of a session runs as. */
#ifndef UNIKVM_USERS_H
#define UNIKVM_USERS_H

#include "order.h"

struct user {
	uid_t uid;
	gid_t gid, groups[MAX_GROUPS];	/* the first group is gid */
	int ngroups;
	const char *name, *home, *shell;	/* name: empty where there is none */
};

/* NAME, UID or UID:GID; NULL, or what is wrong with it. */
const char *user_find(const char *wanted, struct user *user);

#endif

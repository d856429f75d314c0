/* SPDX-License-Identifier: GPL-2.0-only */
/* Files in and out of the guest, over the frames of a session. The process ends with the copy. */
#ifndef UNIKVM_COPY_H
#define UNIKVM_COPY_H

#include <stdbool.h>
#include <stddef.h>

#define COPY_DEPTH	256	/* directories within each other */

struct trail {			/* where we are, for people */
	char path[4096];
	size_t len[COPY_DEPTH + 2];
	int depth;
};

void trail_enter(struct trail *trail, const char *name);
void trail_leave(struct trail *trail);

/* What the other end sends, to `path` under `name` where that is a directory (`into`: it has to be one). */
void copy_put(const char *path, const char *name, bool into) __attribute__((noreturn));
/* `path`, and all that is below. */
void copy_get(const char *path) __attribute__((noreturn));

#endif

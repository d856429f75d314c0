// SPDX-License-Identifier: GPL-2.0-only
/*
 * Users by name, from /etc/passwd and /etc/group of the root that is in place. Not
 * getpwnam: its plugins cannot be linked statically.
 */
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_TABLE	(1u << 20)	/* of a file; what is behind that is not looked at */
#define PASSWD_FIELDS	7
#define GROUP_FIELDS	4

/* A whole file as a string, to be freed; NULL where it cannot be had. */
static char *slurp(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0, size = 4096;
	char *text = NULL;
	ssize_t n = 1;

	if (fd < 0)
		return NULL;
	while (n > 0 && len < MAX_TABLE) {
		size *= 2;
		text = grow(text, size);
		n = read(fd, text + len, size - 1 - len);
		len += n > 0 ? n : 0;
	}
	text[len] = '\0';
	close(fd);
	return text;
}

/* Cut a line at its colons; how many fields there are. */
static int cut(char *line, char **fields, int max)
{
	int n = 0;

	while (line && n < max) {
		fields[n++] = line;
		line = strchr(line, ':');
		if (line)
			*line++ = '\0';
	}
	return line ? max + 1 : n;
}

/* The next line of a table that has `count` fields, cut; NULL at the end. */
static char *next_entry(char *at, char **fields, int count)
{
	char *end;

	while (at && *at) {
		end = strchr(at, '\n');
		if (end)
			*end++ = '\0';
		if (cut(at, fields, count) == count)
			return end ? end : at + strlen(at);
		at = end;
	}
	return NULL;
}

/* A field or a word that is nothing but a number of a user or group. */
static bool whole_id(const char *text, unsigned int *id)
{
	const char *end;

	return parse_id(text, &end, id) && !*end;
}

static bool lists(const char *members, const char *name)
{
	size_t len = strlen(name);

	while (*members) {
		if (!strncmp(members, name, len) && (members[len] == ',' || !members[len]))
			return true;
		members += strcspn(members, ",");
		members += *members == ',';
	}
	return false;
}

static void add_group(struct user *user, gid_t gid)
{
	int i;

	for (i = 0; i < user->ngroups; i++)
		if (user->groups[i] == gid)
			return;
	if (user->ngroups < MAX_GROUPS)
		user->groups[user->ngroups++] = gid;
}

static void add_groups(struct user *user)
{
	char *table = slurp("/etc/group"), *at = table, *fields[GROUP_FIELDS];
	gid_t gid;

	while ((at = next_entry(at, fields, GROUP_FIELDS)))
		if (lists(fields[3], user->name) && whole_id(fields[2], &gid))
			add_group(user, gid);
	free(table);
}

/* By name, or where `number` is given by that. */
static bool look_up(const char *name, size_t len, const uid_t *number, struct user *user)
{
	char *table = slurp("/etc/passwd"), *at = table, *fields[PASSWD_FIELDS];
	uid_t uid;
	gid_t gid;

	while ((at = next_entry(at, fields, PASSWD_FIELDS))) {
		if (!whole_id(fields[2], &uid) || !whole_id(fields[3], &gid))
			continue;
		if (number ? uid != *number : strncmp(fields[0], name, len) || fields[0][len])
			continue;
		user->name = fields[0];	/* the table stays */
		user->uid = uid;
		user->gid = gid;
		user->home = fields[5];
		if (fields[6][0])
			user->shell = fields[6];
		return true;
	}
	free(table);
	return false;
}

const char *user_find(const char *wanted, struct user *user)
{
	size_t len = strcspn(wanted, ":");
	bool given = wanted[len], number;
	static char why[128];
	const char *end;
	uid_t uid;
	gid_t gid;

	*user = (struct user){ .name = "", .home = "/", .shell = "/bin/sh" };
	if (!len || (given && !whole_id(wanted + len + 1, &gid)))
		goto none;
	number = parse_id(wanted, &end, &uid) && end == wanted + len;
	if (!look_up(wanted, len, number ? &uid : NULL, user)) {
		if (!number)
			goto none;
		user->uid = user->gid = uid;
	}
	if (given)
		user->gid = gid;
	add_group(user, user->gid);
	if (!given && user->name[0])
		add_groups(user);
	return NULL;
none:
	snprintf(why, sizeof(why), "no such user in the guest: %.80s", wanted);
	return why;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files out of the guest: a walk that sends entries, contents and holes. What cannot
 * be read is a warning, and the walk goes on. Only the path that was asked for is
 * followed where it is a symbolic link; below it links are links.
 */
#include "copy.h"
#include "frames.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct trail trail;

void trail_enter(struct trail *t, const char *name)
{
	size_t at = t->depth ? t->len[t->depth - 1] : 0;
	int n;

	n = snprintf(t->path + at, sizeof(t->path) - at, "%s%s",
		     at && t->path[at - 1] != '/' ? "/" : "", name);
	at += n > 0 ? n : 0;
	t->len[t->depth++] = at < sizeof(t->path) ? at : sizeof(t->path) - 1;
}

void trail_leave(struct trail *t)
{
	t->depth--;
	t->path[t->depth ? t->len[t->depth - 1] : 0] = '\0';
}

static void warn(const char *why)
{
	frame_put_text(FRAME_WARNING, "%s: %s", trail.path, why);
	frame_drain();
}

static void hole(off_t len)
{
	if (len > 0)
		frame_put_text(FRAME_HOLE, "%lld", (long long)len);
}

/* The bytes from where the descriptor stands, at most `len`; how many they were, -1 for an error. */
static off_t send_bytes(int fd, off_t len)
{
	off_t done = 0;
	ssize_t n;

	while (done < len) {
		n = frame_put_read(FRAME_DATA, fd, len - done < FRAME_DATA_MAX ? len - done : FRAME_DATA_MAX);
		if (n < 0 && errno == EAGAIN) {
			wait_fd(fd, POLLIN, -1);
			continue;
		}
		if (n < 0)
			return -1;
		if (!n)
			break;
		done += n;
		frame_drain();
	}
	return done;
}

/* A sparse file, stretch by stretch. */
static int send_sparse(int fd, off_t size)
{
	off_t at = 0, data, end;

	while (at < size) {
		data = lseek(fd, at, SEEK_DATA);
		if (data < 0 && errno != ENXIO)
			return -1;
		if (data < 0 || data > size)
			data = size;
		hole(data - at);
		at = data;
		if (at == size)
			break;
		end = lseek(fd, at, SEEK_HOLE);
		if (end < 0 || lseek(fd, at, SEEK_SET) < 0)
			return -1;
		data = send_bytes(fd, end - at);
		if (data <= 0)
			return data;	/* shortened in the meantime */
		at += data;
	}
	return 0;
}

static void entry(const char *kind, const char *name, const struct stat *st, const char *more)
{
	char mode[16], time[40];

	snprintf(mode, sizeof(mode), "%o", st->st_mode & 07777);
	snprintf(time, sizeof(time), "%lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
	if (!strcmp(kind, "link"))
		frame_put_words(FRAME_ENTRY, kind, name, more, time, NULL);
	else
		frame_put_words(FRAME_ENTRY, kind, name, mode, time, more, NULL);
	frame_drain();
}

static void send_file(int fd, const char *name, const struct stat *st)
{
	bool sparse = S_ISREG(st->st_mode) && st->st_blocks < st->st_size / 512;
	char size[24];

	snprintf(size, sizeof(size), "%lld", (long long)st->st_size);
	entry("file", name, st, size);
	if (sparse ? send_sparse(fd, st->st_size) < 0 : send_bytes(fd, INT64_MAX) < 0)
		warn(strerror(errno));
	frame_put(FRAME_EOF, NULL, 0);
	frame_drain();
}

static void send_link(int dir, const char *name, const struct stat *st)
{
	char target[PATH_MAX];
	ssize_t len = readlinkat(dir, name, target, sizeof(target) - 1);

	if (len < 0) {
		warn(strerror(errno));
		return;
	}
	target[len] = '\0';
	entry("link", name, st, target);
}

static void send_any(int dir, const char *name, bool top);

static void send_directory(int fd, const char *name, const struct stat *st)
{
	struct dirent *one;
	DIR *dir;

	dir = trail.depth <= COPY_DEPTH ? fdopendir(fd) : NULL;
	if (!dir) {
		warn(trail.depth <= COPY_DEPTH ? strerror(errno) : "too deep");
		close(fd);
		return;
	}
	entry("dir", name, st, NULL);
	while ((one = readdir(dir)))
		if (strcmp(one->d_name, ".") && strcmp(one->d_name, ".."))
			send_any(dirfd(dir), one->d_name, false);
	closedir(dir);
	frame_put(FRAME_UP, NULL, 0);
}

/* To open a device can do something: below the top only what can be sent is. */
static bool can_be_sent(const struct stat *st, bool top)
{
	if (top || S_ISREG(st->st_mode) || S_ISDIR(st->st_mode))
		return true;
	warn("neither a file nor a directory");
	return false;
}

static void send_any(int dir, const char *name, bool top)
{
	int fd, flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (top ? 0 : O_NOFOLLOW);
	struct stat st;

	trail_enter(&trail, name);
	if (fstatat(dir, name, &st, top ? 0 : AT_SYMLINK_NOFOLLOW)) {
		warn(strerror(errno));
	} else if (S_ISLNK(st.st_mode)) {
		send_link(dir, name, &st);
	} else if (can_be_sent(&st, top)) {
		fd = openat(dir, name, flags);
		if (fd < 0 || fstat(fd, &st)) {
			warn(strerror(errno));
		} else if (!can_be_sent(&st, top)) {
			;	/* it became something else meanwhile */
		} else if (S_ISDIR(st.st_mode)) {
			send_directory(fd, name, &st);	/* closes it */
			fd = -1;
		} else {
			send_file(fd, name, &st);
		}
		if (fd >= 0)
			close(fd);
	}
	trail_leave(&trail);
}

void copy_get(const char *path)
{
	send_any(AT_FDCWD, path, true);
	frame_put(FRAME_DONE, NULL, 0);
	frame_finish();
}

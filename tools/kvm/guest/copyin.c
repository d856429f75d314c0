// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files into the guest: entries become what they describe, below descriptors of their
 * directories, so no name of the other end leads anywhere else. What cannot be made is
 * a warning and is left out, with all that is below it; a file system that takes no
 * bytes ends the copy.
 */
#include "copy.h"
#include "frames.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
	int dir[COPY_DEPTH + 1];	/* -1: left out */
	bool fresh[COPY_DEPTH + 1];	/* made by us, so it gets a mode and a time at its end */
	mode_t mode[COPY_DEPTH + 1];
	struct timespec time[COPY_DEPTH + 1];
	int depth;		/* dir[depth] is where entries go */
	const char *top;	/* the name of the first entry, and only one at the top */
	bool slash;		/* what does not exist has to become a directory */
	int entered;
	bool open;		/* a file's content is on its way */
	int file;		/* -1: left out */
	bool regular;
	mode_t file_mode;
	struct timespec file_time;
	struct trail trail;
} copy = { .file = -1 };

static void fail(void) __attribute__((noreturn));
static void fail(void)
{
	frame_put_text(FRAME_ERROR, "%s: %s", copy.trail.path, strerror(errno));
	frame_finish();
}

static void bad(void) __attribute__((noreturn));
static void bad(void)
{
	frame_put_text(FRAME_ERROR, "malformed copy");
	frame_finish();
}

static void warn(void)
{
	frame_put_text(FRAME_WARNING, "%s: %s", copy.trail.path, strerror(errno));
	frame_drain();
}

static bool parse_time(const char *text, struct timespec *times)
{
	char *end;

	times[0] = (struct timespec){ .tv_nsec = UTIME_NOW };
	times[1].tv_sec = strtoll(text, &end, 10);
	if (end == text || *end != '.' || strlen(end) != 10)
		return false;
	times[1].tv_nsec = strtol(end + 1, &end, 10);
	return !*end && times[1].tv_nsec >= 0;
}

/* --- entries --- */

/* A name that is no way to anywhere else; `.` is the directory itself, at the top alone. */
static bool sound(const char *name)
{
	return name[0] && !strchr(name, '/') && strcmp(name, "..") && (strcmp(name, ".") || !copy.depth);
}

static void take_directory(const char *name, mode_t mode, const struct timespec *time)
{
	int here = copy.dir[copy.depth], fd = -1;
	bool fresh = false;

	if (copy.depth == COPY_DEPTH)
		bad();
	if (here >= 0) {
		fresh = !mkdirat(here, name, 0700);
		if (fresh || errno == EEXIST)
			fd = openat(here, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (copy.depth ? O_NOFOLLOW : 0));
		if (fd < 0)
			warn();
	}
	copy.depth++;
	copy.dir[copy.depth] = fd;
	copy.fresh[copy.depth] = fresh;
	copy.mode[copy.depth] = mode;
	copy.time[copy.depth] = *time;
}

static void leave_directory(void)
{
	int fd = copy.dir[copy.depth];
	struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, copy.time[copy.depth] };

	if (fd >= 0) {
		if (copy.fresh[copy.depth] && (fchmod(fd, copy.mode[copy.depth]) || futimens(fd, times)))
			warn();
		close(fd);
	}
	copy.depth--;
	trail_leave(&copy.trail);
}

static int open_file(int here, const char *name)
{
	int flags = O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (copy.depth ? O_NOFOLLOW : 0);
	int fd = openat(here, name, flags, 0600);

	if (fd < 0 && errno == ELOOP && copy.depth && !unlinkat(here, name, 0))
		fd = openat(here, name, flags, 0600);
	return fd;
}

static void take_file(const char *name, mode_t mode, const struct timespec *time)
{
	int here = copy.dir[copy.depth];
	struct stat st;

	copy.file_mode = mode;
	copy.file_time = *time;
	errno = EISDIR;
	copy.file = here < 0 || (copy.slash && !copy.depth) ? -1 : open_file(here, name);
	if (copy.file < 0 || fstat(copy.file, &st)) {
		if (here >= 0)
			warn();
		return;
	}
	copy.regular = S_ISREG(st.st_mode);
	if (copy.regular && ftruncate(copy.file, 0))
		warn();
}

static void take_link(const char *name, const char *target, const struct timespec *times)
{
	int here = copy.dir[copy.depth];

	if (here < 0)
		return;
	if (symlinkat(target, here, name) &&
	    (errno != EEXIST || unlinkat(here, name, 0) || symlinkat(target, here, name)))
		warn();
	else
		utimensat(here, name, times, AT_SYMLINK_NOFOLLOW);
}

static void take_entry(char *line)
{
	static struct words w;
	struct timespec times[2];
	const char *name, *kind;
	bool link;

	if (!words_split(line, &w) || w.n < 4 || copy.open)
		bad();
	kind = w.v[0];
	link = !strcmp(kind, "link");
	if (!parse_time(w.v[3], times) || !sound(w.v[1]) || (!copy.depth && copy.entered++))
		bad();
	name = copy.depth ? w.v[1] : copy.top;
	trail_enter(&copy.trail, name);
	if (!strcmp(kind, "dir")) {
		take_directory(name, strtoul(w.v[2], NULL, 8) & 0777, &times[1]);
		return;
	}
	if (link) {
		take_link(name, w.v[2], times);
		trail_leave(&copy.trail);
	} else if (!strcmp(kind, "file")) {
		copy.open = true;
		/* What ran as its owner would run as root here. */
		take_file(name, strtoul(w.v[2], NULL, 8) & 0777, &times[1]);
	} else {
		bad();
	}
}

/* --- contents --- */

static void take_bytes(const char *data, size_t len)
{
	ssize_t n;

	while (len && copy.file >= 0) {
		n = write(copy.file, data, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			wait_fd(copy.file, POLLOUT, -1);
			continue;
		}
		if (n <= 0)
			fail();
		data += n;
		len -= n;
	}
}

static void take_hole(long long len)
{
	static const char zeros[16384];

	if (copy.file < 0 || len <= 0)
		return;
	if (copy.regular) {
		if (lseek(copy.file, len, SEEK_CUR) < 0)
			fail();
		return;
	}
	for (; len > 0; len -= sizeof(zeros))
		take_bytes(zeros, len < (long long)sizeof(zeros) ? (size_t)len : sizeof(zeros));
}

static void end_file(void)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, copy.file_time };

	if (!copy.open)
		bad();
	if (copy.file >= 0 && copy.regular) {
		if (ftruncate(copy.file, lseek(copy.file, 0, SEEK_CUR)))	/* a hole at the end */
			fail();
		if (fchmod(copy.file, copy.file_mode) || futimens(copy.file, times))
			warn();
	}
	if (copy.file >= 0 && close(copy.file))
		fail();
	copy.file = -1;
	copy.open = false;
	trail_leave(&copy.trail);
}

/* --- the copy --- */

/* Where the copy goes: a directory, and the first entry's name in it. */
static void open_top(const char *path, const char *name, bool into)
{
	char *end, *copied;

	copy.dir[0] = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	copy.top = name;
	if (copy.dir[0] >= 0) {
		trail_enter(&copy.trail, path);
		return;
	}
	trail_enter(&copy.trail, path);
	if (into || (errno != ENOENT && errno != ENOTDIR))
		fail();
	copied = strdup(path);
	if (!copied)
		fail();
	for (end = copied + strlen(copied); end > copied + 1 && end[-1] == '/'; copy.slash = true)
		*--end = '\0';
	end = strrchr(copied, '/');
	copy.top = end ? end + 1 : copied;
	if (end)
		*end = '\0';
	copy.dir[0] = open(!end ? "." : end == copied ? "/" : copied, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (copy.dir[0] < 0)
		fail();
	trail_leave(&copy.trail);
	if (end)
		trail_enter(&copy.trail, end == copied ? "/" : copied);
}

void copy_put(const char *path, const char *name, bool into)
{
	struct frame frame;

	if (!sound(name))
		bad();
	open_top(path, name, into);
	for (;;) {
		frame_wait(&frame);
		switch (frame.kind) {
		case FRAME_ENTRY:
			take_entry(frame.data);
			break;
		case FRAME_DATA:
			take_bytes(frame.data, frame.len);
			break;
		case FRAME_HOLE:
			take_hole(strtoll(frame.data, NULL, 10));
			break;
		case FRAME_EOF:
			end_file();
			break;
		case FRAME_UP:
			if (!copy.depth || copy.open)
				bad();
			leave_directory();
			break;
		case FRAME_DONE:
			if (copy.depth || copy.open)
				bad();
			frame_put(FRAME_DONE, NULL, 0);
			frame_finish();
		default:
			bad();
		}
	}
}

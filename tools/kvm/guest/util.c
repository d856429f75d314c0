// SPDX-License-Identifier: GPL-2.0-only
/* Small things every file of init uses. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* One line on the console. snprintf and write: no stdio streams in this binary. */
void complain(const char *fmt, ...)
{
	char line[512];
	va_list args;
	int len, prefix;

	prefix = snprintf(line, sizeof(line), "unikvm-init: ");
	va_start(args, fmt);
	len = vsnprintf(line + prefix, sizeof(line) - prefix - 1, fmt, args);
	va_end(args);
	if (len < 0)
		return;
	len += prefix;
	if (len > (int)sizeof(line) - 2)
		len = sizeof(line) - 2;
	line[len++] = '\n';
	/* Nothing is left to complain to if this fails. */
	if (write(STDERR_FILENO, line, len) < 0)
		return;
}

void *grow(void *old, size_t size)
{
	void *new = realloc(old, size);

	if (!new) {
		complain("out of memory (%zu bytes)", size);
		power_off();
	}
	return new;
}

void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void nap(unsigned int us)
{
	struct timespec ts = { .tv_nsec = us * 1000L };

	nanosleep(&ts, NULL);
}

long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* Read a small (sysfs, procfs) file as a string without its last newline; -1 and errno on failure. */
ssize_t read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	if (fd < 0)
		return -1;
	len = read(fd, buf, size - 1);
	close(fd);
	if (len < 0)
		return -1;
	if (len && buf[len - 1] == '\n')
		len--;
	buf[len] = '\0';
	return len;
}

/* How readily the kernel kills this process, and what it will start, where memory is short: proc(5), oom_score_adj. */
void oom_adjust(const char *value)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;		/* without /proc, or (ENOENT) without the OOM killer */
	if (write(fd, value, strlen(value)) < 0)
		complain("oom_score_adj: %s", strerror(errno));
	close(fd);
}

/*
 * The number of a user or group at the start of `text`, and what follows it.
 * False where there is none: what is larger would be cut, 2^32 to that of root.
 */
bool parse_id(const char *text, const char **end, unsigned int *id)
{
	unsigned long long value = 0;

	for (*end = text; **end >= '0' && **end <= '9' && value < UINT32_MAX; ++*end)
		value = value * 10 + (**end - '0');
	*id = value;
	return *end != text && value < UINT32_MAX;	/* -1 is no user for the kernel either */
}

/* mkdir -p */
bool make_dirs(const char *path)
{
	char *copy = strdup(path), *slash;
	bool ok;

	if (!copy)
		return false;
	for (slash = copy; (slash = strchr(slash + 1, '/'));) {
		*slash = '\0';
		mkdir(copy, 0755);	/* the last one's result is what counts */
		*slash = '/';
	}
	ok = !mkdir(copy, 0755) || errno == EEXIST;
	free(copy);
	return ok;
}

/*
 * Find `key` on the kernel command line, as "key=value" or alone (value is
 * then empty). False where it is not there.
 */
bool cmdline_value(const char *key, char *value, size_t size)
{
	static char line[4096];
	size_t len = strlen(key), n;
	const char *at;

	if (!line[0] && read_file("/proc/cmdline", line, sizeof(line)) < 0)
		return false;
	for (at = line; (at = strstr(at, key)); at += len) {
		if (at != line && at[-1] != ' ')
			continue;
		if (at[len] == '=') {
			at += len + 1;
			n = strcspn(at, " ");
		} else if (at[len] == ' ' || !at[len]) {
			n = 0;
		} else {
			continue;
		}
		if (n >= size)
			n = size - 1;
		memcpy(value, at, n);
		value[n] = '\0';
		return true;
	}
	return false;
}

void power_off(void)
{
	sync();
	if (getpid() != 1)	/* under test */
		_exit(0);
	reboot(RB_POWER_OFF);
	complain("power off: %s", strerror(errno));
	for (;;)
		pause();
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The line protocol on the ctl port, and the loop that serves it.
 *
 * A line is words with one space between them; bytes of a word that are not
 * printable ASCII, or are '%', are written %XX, so that a word can hold
 * anything and a line has a newline at its end alone.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_LINE	(8u << 20)	/* three times what execve takes */
#define MAX_FILE	(1u << 20)	/* what `read` hands over */
#define READ_CHUNK	16384

static struct {
	char *data;
	size_t start, len, size;	/* data[start .. start+len) is unread */
	size_t scanned;			/* of which no newline was found in this much */
} input;

static struct {
	char *data;
	size_t len, size;
} output;

/* --- writing --- */

static void put(char c)
{
	if (output.len == output.size) {
		output.size = output.size ? output.size * 2 : 512;
		output.data = grow(output.data, output.size);
	}
	output.data[output.len++] = c;
}

static void put_word(const void *data, size_t len)
{
	static const char hex[] = "0123456789ABCDEF";
	const unsigned char *p = data;

	for (; len--; p++) {
		if (*p > ' ' && *p < 0x7f && *p != '%') {
			put(*p);
		} else {
			put('%');
			put(hex[*p >> 4]);
			put(hex[*p & 15]);
		}
	}
}

static void put_flush(void)
{
	size_t done = 0;
	ssize_t n;

	put('\n');
	while (done < output.len) {
		n = write(port_fd[PORT_CTL], output.data + done, output.len - done);
		if (n > 0) {
			done += n;
		} else if (n < 0 && errno == EAGAIN) {
			wait_fd(port_fd[PORT_CTL], POLLOUT, -1);
		} else if (n < 0 && errno != EINTR) {
			complain("write to unikvm.ctl: %s", strerror(errno));
			power_off();
		}
	}
	output.len = 0;
}

/* Send a line: the verb and more words, NULL at the end. */
void ctl_send(const char *verb, ...)
{
	const char *word;
	va_list args;

	put_word(verb, strlen(verb));
	va_start(args, verb);
	while ((word = va_arg(args, const char *))) {
		put(' ');
		put_word(word, strlen(word));
	}
	va_end(args);
	put_flush();
}

void ctl_send_data(const char *verb, const void *data, size_t len)
{
	put_word(verb, strlen(verb));
	put(' ');
	put_word(data, len);
	put_flush();
}

/* --- reading --- */

static void input_fill(void)
{
	ssize_t n;

	if (input.start) {
		memmove(input.data, input.data + input.start, input.len);
		input.start = 0;
	}
	if (input.size - input.len < READ_CHUNK) {
		if (input.len > MAX_LINE) {
			complain("a line of more than %u bytes on unikvm.ctl", MAX_LINE);
			power_off();
		}
		input.size = input.len + input.len / 2 + READ_CHUNK;
		input.data = grow(input.data, input.size);
	}
	n = read(port_fd[PORT_CTL], input.data + input.len, input.size - input.len);
	if (n > 0) {
		input.len += n;
	} else if (!n || (errno != EAGAIN && errno != EINTR)) {
		complain("unikvm.ctl: %s", n ? strerror(errno) : "its other end closed");
		power_off();
	}
}

/* The next complete line without its newline, or NULL. */
static char *input_line(void)
{
	char *line = input.data + input.start, *end;

	if (input.len == input.scanned)
		return NULL;
	end = memchr(line + input.scanned, '\n', input.len - input.scanned);
	if (!end) {
		input.scanned = input.len;
		return NULL;
	}
	*end = '\0';
	input.scanned = 0;
	input.len -= end + 1 - line;
	input.start += end + 1 - line;
	return line;
}

/* --- requests: each answers NULL (fine) or what went wrong --- */

static const char *failed(const char *what)
{
	static char why[512];

	snprintf(why, sizeof(why), "%s: %s", what, strerror(errno));
	return why;
}

static const char *set_time(const char *seconds, const char *nanoseconds)
{
	struct timespec ts = { .tv_sec = atoll(seconds), .tv_nsec = atol(nanoseconds) };

	return clock_settime(CLOCK_REALTIME, &ts) ? failed("clock_settime") : NULL;
}

/*
 * Mix in randomness of the machine (as text: the kernel hashes it): a host
 * restored from a snapshot would otherwise draw the same numbers every time.
 */
static const char *reseed(const char *seed)
{
	struct {
		struct rand_pool_info info;
		char text[256];
	} pool;
	size_t len = strlen(seed);
	const char *why = NULL;
	int fd;

	if (len > sizeof(pool.text))
		len = sizeof(pool.text);
	pool.info.entropy_count = len * 4;	/* bits: hexadecimal digits */
	pool.info.buf_size = len;
	memcpy(pool.info.buf, seed, len);
	fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return failed("/dev/urandom");
	if (ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))
		why = failed("/dev/urandom");
	close(fd);
	return why;
}

/* Hand over a file's content (a run's result); answers by itself when it could. */
static const char *hand_over(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	const char *why = NULL;
	size_t len = 0;
	struct stat st;
	ssize_t n = 1;
	char *data;

	if (fd < 0)
		return failed(path);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		close(fd);
		return "read: not a regular file";
	}
	data = grow(NULL, MAX_FILE + 1);
	while (n > 0 && len <= MAX_FILE) {
		n = read(fd, data + len, MAX_FILE + 1 - len);
		len += n > 0 ? n : 0;
	}
	if (n < 0)
		why = failed(path);
	else if (len > MAX_FILE)
		why = "read: the file is larger than 1 MiB";
	else
		ctl_send_data("data", data, len);
	close(fd);
	free(data);
	return why;
}

static const char *bad_request(const char *verb)
{
	static char why[128];

	snprintf(why, sizeof(why), "no such request, or too few arguments: %.80s", verb);
	return why;
}

/* What needs an answer and no more than that. */
static const char *obey_simple(struct words *w)
{
	const char *verb = w->v[0];
	char *none = "";

	if (!strcmp(verb, "time") && w->n == 3)
		return set_time(w->v[1], w->v[2]);
	if (!strcmp(verb, "seed") && w->n == 2)
		return reseed(w->v[1]);
	if (!strcmp(verb, "root") && w->n >= 3)
		return root_mount(w->v[1], w->v[2], w->n > 3 ? w->v[3] : none,
				  w->n > 4 && !strcmp(w->v[4], "foreign"));
	if (!strcmp(verb, "share") && w->n >= 4)
		return share_mount(w->v[1], w->v[2], w->v[3], w->n > 4 ? w->v[4] : none);
	if (!strcmp(verb, "bind") && w->n == 3)
		return bind_mount(w->v[1], w->v[2]);
	if (!strcmp(verb, "sync")) {
		sync();
		return NULL;
	}
	if (!strcmp(verb, "insmod") && w->n >= 2)
		return module_insert(w->v[1], w->n > 2 ? w->v[2] : none);
	return bad_request(verb);
}

static void obey(struct words *w)
{
	const char *verb = w->v[0], *why;
	char number[24];
	pid_t pid = 0;

	/* First what has no answer or one of its own. */
	if (!strcmp(verb, "ping")) {
		ctl_send("pong", w->n > 1 ? w->v[1] : "", NULL);
	} else if (!strcmp(verb, "eof") && w->n == 2) {
		job_eof(strtoull(w->v[1], NULL, 10));
	} else if (!strcmp(verb, "winsize") && w->n == 3) {
		job_winsize(atoi(w->v[1]), atoi(w->v[2]));
	} else if (!strcmp(verb, "signal") && w->n == 2) {
		job_signal(atoi(w->v[1]));
	} else if (!strcmp(verb, "hangup") && w->n == 2) {
		job_hangup(strcmp(w->v[1], "stderr") ? PORT_STDOUT : PORT_STDERR);
	} else if (!strcmp(verb, "poweroff")) {
		power_off();
	} else if (!strcmp(verb, "exec")) {
		agent_start();	/* the root that commands see is in place */
		why = job_start(w, &pid);
		snprintf(number, sizeof(number), "%d", pid);
		ctl_send(why ? "error" : "ok", why ? why : number, NULL);
	} else if (!strcmp(verb, "read") && w->n == 2) {
		why = hand_over(w->v[1]);
		if (why)
			ctl_send("error", why, NULL);
	} else {
		why = obey_simple(w);
		if (why)
			ctl_send("error", why, NULL);
		else
			ctl_send("ok", NULL);
	}
}

static void obey_all(void)
{
	static struct words words;
	char *line;

	while ((line = input_line())) {
		if (words_split(line, &words))
			obey(&words);
		else
			ctl_send("error", "malformed line", NULL);
	}
}

static void reap(int fd)
{
	struct signalfd_siginfo info;
	int status;
	pid_t pid;

	while (read(fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
			power_off();
	}
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		job_reaped(pid, status);
}

static int signals(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (fd < 0) {
		complain("signalfd: %s", strerror(errno));
		power_off();
	}
	return fd;
}

/* Serve requests and the running command until a request powers off. */
void ctl_serve(void)
{
	struct pollfd fds[2 + JOB_POLL];
	int signal_fd = signals();
	struct sched_param param = { 0 };

	/* A command that writes line by line is not interrupted at each: its output is moved on in larger pieces. */
	sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &param);
	ctl_send("ready", PROTOCOL, NULL);
	for (;;) {
		fds[0] = (struct pollfd){ .fd = port_fd[PORT_CTL], .events = POLLIN };
		fds[1] = (struct pollfd){ .fd = signal_fd, .events = POLLIN };
		job_poll(fds + 2);
		if (poll(fds, 2 + JOB_POLL, -1) < 0) {
			if (errno == EINTR)
				continue;
			complain("poll: %s", strerror(errno));
			power_off();
		}
		if (fds[1].revents)
			reap(signal_fd);
		if (fds[0].revents) {
			input_fill();
			obey_all();
		}
		job_pump();
	}
}

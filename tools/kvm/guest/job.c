// SPDX-License-Identifier: GPL-2.0-only
/*
 * The one command that runs, and the bytes between it and the ports.
 *
 * No byte is lost: output is read until nothing is left after the command was
 * reaped, the `exit` line goes out last and says how many bytes each port
 * carried, and the other end waits for them. Standard input belongs to a command
 * from its `ok` until the `eof` line with its length has come: what a command
 * did not read is dropped, and never given to the next one. The port and ctl are
 * two queues, so this holds only because the other end sends nothing before the
 * `ok`: bytes on the port without an `eof` are then the last command's for certain.
 */
#include "init.h"
#include "order.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define STREAM_BUF	65536
#define TURNS		16	/* buffers of input before the rest has its turn */
#define EOF_UNKNOWN	UINT64_MAX

struct stream {
	int from, to;		/* -1: closed */
	size_t start, len;	/* buf[start .. start+len) is not written yet */
	uint64_t moved;		/* read from `from` since the command began */
	char *buf;		/* STREAM_BUF bytes */
};

/* Not in `job`: what has initial values is in the binary's file, every byte of it. */
static char buffers[3][STREAM_BUF];

static struct {
	pid_t pid;		/* 0: none runs */
	enum tty tty;
	int tty_fd;		/* the pty's master or the console, for winsize */
	bool reaped;
	int status;
	uint64_t stdin_total;	/* how many bytes of stdin there are in all */
	struct stream in, out, err;
} job = {
	.tty_fd = -1,
	.in = { .from = -1, .to = -1, .buf = buffers[0] },
	.out = { .from = -1, .to = -1, .buf = buffers[1] },
	.err = { .from = -1, .to = -1, .buf = buffers[2] },
};

/* --- streams --- */

/* Move what waits in the buffer on; a reader that has gone takes no more. */
static void stream_flush(struct stream *s)
{
	ssize_t n;

	while (s->len) {
		n = s->to < 0 ? (ssize_t)s->len : write(s->to, s->buf + s->start, s->len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			close_fd(&s->to);
			continue;
		}
		s->start += n;
		s->len -= n;
	}
}

/* From the command to a port, until nothing is there at the moment. */
static void pump_output(struct stream *s)
{
	ssize_t n;

	for (;;) {
		stream_flush(s);
		if (s->len || s->from < 0)
			return;
		n = read(s->from, s->buf, STREAM_BUF);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && !job.reaped)
			return;
		if (n <= 0) {	/* the end, or (EAGAIN) all that the command left */
			close_fd(&s->from);
			return;
		}
		s->moved += n;
		s->start = 0;
		s->len = n;
	}
}

static bool input_complete(void)
{
	return job.in.moved == job.stdin_total;
}

/*
 * Fill the buffer from the port: a read gives a page at most, and a write to a
 * pipe wakes its reader. False where the other end of the port is closed.
 */
static bool input_fill(struct stream *s)
{
	uint64_t left = job.stdin_total - s->moved;
	size_t want = left < STREAM_BUF ? left : STREAM_BUF;
	ssize_t n = 1;

	s->start = 0;
	while (s->len < want && n > 0) {
		do {
			n = read(s->from, s->buf + s->len, want - s->len);
		} while (n < 0 && errno == EINTR);
		if (n > 0)
			s->len += n;
	}
	s->moved += s->len;
	return n > 0 || (n < 0 && errno == EAGAIN) || s->len;
}

/* Does the command take input, or is what it left to be dropped? One that closed its stdin leaves it where it is. */
static bool input_wanted(void)
{
	return job.in.from >= 0 && (!job.pid || job.in.to >= 0 || input_complete());
}

/* From the port to the command, no more than belongs to it. */
static void pump_input(void)
{
	struct stream *s = &job.in;
	int turn;

	for (turn = 0;; turn++) {
		stream_flush(s);
		if (s->len || !input_wanted())
			return;
		if (input_complete()) {
			if (job.tty == TTY_PTY && s->to >= 0 && write(s->to, "\004", 1) < 0)
				complain("end of file to the pty: %s", strerror(errno));
			close_fd(&s->to);
			s->from = -1;	/* the port stays open for the next command */
			return;
		}
		if (turn == TURNS)
			return;
		if (!input_fill(s))
			job.stdin_total = s->moved;
		else if (!s->len)
			return;
	}
}

/* --- starting --- */

/* Pipes between the ports and the command. */
static int connect_pipes(int theirs[3])
{
	int ours[3], failed = order_pipes(theirs, ours);

	job.in.from = port_fd[PORT_STDIN];
	job.in.to = ours[0];
	job.out.from = ours[1];
	job.out.to = port_fd[PORT_STDOUT];
	job.err.from = ours[2];
	job.err.to = port_fd[PORT_STDERR];
	return failed;
}

/* A pty: its output goes to stdout's port, stderr's stays silent. */
static int connect_pty(const struct winsize *size, int theirs[3])
{
	int failed = order_pty(size, theirs, &job.tty_fd);

	if (failed)
		return failed;
	job.in.to = fcntl(job.tty_fd, F_DUPFD_CLOEXEC, 0);
	job.out.from = fcntl(job.tty_fd, F_DUPFD_CLOEXEC, 0);
	if (job.in.to < 0 || job.out.from < 0)
		return errno;
	job.in.from = port_fd[PORT_STDIN];
	job.out.to = port_fd[PORT_STDOUT];
	return 0;
}

/* The machine's own console: no bytes pass through init. */
static int connect_console(const struct winsize *size, int theirs[3])
{
	theirs[0] = console_open(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (theirs[0] < 0)
		return errno;
	job.tty_fd = fcntl(theirs[0], F_DUPFD_CLOEXEC, 0);
	if (size->ws_col)
		ioctl(theirs[0], TIOCSWINSZ, size);
	job.in.from = -1;	/* nor does the port */
	return 0;
}

static void stream_reset(struct stream *s)
{
	s->start = s->len = 0;
	s->moved = 0;
}

static void disconnect(void)
{
	close_fd(&job.in.to);
	close_fd(&job.out.from);
	close_fd(&job.err.from);
	close_fd(&job.tty_fd);
	job.out.to = job.err.to = -1;
}

static int connect_streams(const struct order *order, int theirs[3])
{
	enum port port, last = order->tty == TTY_NONE ? PORT_STDERR : PORT_STDOUT;

	if (order->tty == TTY_CONSOLE)
		return connect_console(&order->size, theirs);
	for (port = PORT_STDIN; port <= last; port++)
		if (!port_open(port, PORT_PATIENCE))
			return ENXIO;
	return order->tty == TTY_PTY ? connect_pty(&order->size, theirs) : connect_pipes(theirs);
}

/* Drop what the last command left of its stdin; all of it is on its way, its `eof` came before. */
static bool drop_old_input(void)
{
	if (job.stdin_total == EOF_UNKNOWN && job.in.from >= 0)
		return false;
	for (;;) {
		pump_input();
		if (job.in.from < 0)
			return true;
		wait_fd(job.in.from, POLLIN, -1);
	}
}

/* Start the command of an `exec` line; NULL, or what went wrong. */
const char *job_start(struct words *words, pid_t *pid)
{
	int theirs[3] = { -1, -1, -1 }, failed, i;
	static char why[512];
	const char *refused;
	struct order order;

	if (job.pid)
		return "exec: a command is running";
	if (!drop_old_input())
		return "exec: the last command's stdin has had no eof";
	stream_reset(&job.in);
	stream_reset(&job.out);
	stream_reset(&job.err);
	refused = order_parse(words, &order);
	if (refused)
		return refused;
	if (!order.cwd)
		order.cwd = "/";
	job.tty = order.tty;
	job.reaped = false;
	failed = connect_streams(&order, theirs);
	if (!failed)
		failed = order_spawn(&order, theirs, pid);
	for (i = 0; i < 3; i++)
		close_fd(&theirs[i]);
	if (failed) {
		snprintf(why, sizeof(why), "%.200s (in %.200s): %s", order.argv[0], order.cwd,
			 strerror(failed));
		disconnect();
		job.in.from = -1;	/* no `ok`, so no input either */
	} else {
		job.pid = *pid;
		job.stdin_total = EOF_UNKNOWN;
	}
	free(order.env);
	return failed ? why : NULL;
}

/* --- while it runs --- */

void job_eof(uint64_t total)
{
	if (job.stdin_total == EOF_UNKNOWN)
		job.stdin_total = total;
}

void job_winsize(unsigned int cols, unsigned int rows)
{
	struct winsize size = { .ws_col = cols, .ws_row = rows };

	if (job.tty_fd >= 0)
		ioctl(job.tty_fd, TIOCSWINSZ, &size);
}

/* To the command's process group; on a terminal to the group in its foreground as well. */
void job_signal(int signum)
{
	pid_t foreground;

	if (!job.pid)
		return;
	kill(-job.pid, signum);
	if (job.tty_fd >= 0 && !ioctl(job.tty_fd, TIOCGPGRP, &foreground) && foreground > 1 &&
	    foreground != job.pid)
		kill(-foreground, signum);
}

void job_reaped(pid_t pid, int status)
{
	if (pid != job.pid || !job.pid)
		return;
	job.reaped = true;
	job.status = status;
	/* Nobody reads any more: what is left of the input is read and dropped. */
	close_fd(&job.in.to);
}

/* Nobody reads a port any more: the command is to find that out, as in a pipeline. */
void job_hangup(enum port port)
{
	struct stream *s = port == PORT_STDOUT ? &job.out : &job.err;

	if (!job.pid)
		return;
	s->moved -= s->len;	/* never goes out */
	s->len = 0;
	close_fd(&s->from);
	if (job.tty == TTY_PTY) {	/* all that is open of its master */
		close_fd(&job.in.to);
		close_fd(&job.tty_fd);
	}
}

static void output_poll(const struct stream *s, struct pollfd *from, struct pollfd *to)
{
	*from = (struct pollfd){ .fd = s->len ? -1 : s->from, .events = POLLIN };
	*to = (struct pollfd){ .fd = s->len ? s->to : -1, .events = POLLOUT };
}

/* Fill in JOB_POLL entries. A descriptor that nothing is wanted of is left out: hang-ups would spin. */
void job_poll(struct pollfd *fds)
{
	output_poll(&job.in, &fds[0], &fds[1]);
	if (!input_wanted())
		fds[0].fd = -1;
	output_poll(&job.out, &fds[2], &fds[3]);
	output_poll(&job.err, &fds[4], &fds[5]);
}

static bool output_done(const struct stream *s)
{
	return s->from < 0 && !s->len;
}

static void finish(void)
{
	char value[16], out[24], err[24];
	bool signaled = WIFSIGNALED(job.status);

	snprintf(value, sizeof(value), "%d",
		 signaled ? WTERMSIG(job.status) : WEXITSTATUS(job.status));
	snprintf(out, sizeof(out), "%llu", (unsigned long long)job.out.moved);
	snprintf(err, sizeof(err), "%llu", (unsigned long long)job.err.moved);
	disconnect();
	job.pid = 0;
	ctl_send("exit", signaled ? "signal" : "code", value, out, err, NULL);
}

void job_pump(void)
{
	if (job.in.from >= 0)
		pump_input();
	if (!job.pid)
		return;
	pump_output(&job.out);
	pump_output(&job.err);
	if (job.reaped && output_done(&job.out) && output_done(&job.err))
		finish();
}

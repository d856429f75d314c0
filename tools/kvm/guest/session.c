// SPDX-License-Identifier: GPL-2.0-only
/*
 * A session of the agent: a process of its own, which serves one connection from
 * its request to its end. A command's streams stay apart and exact; what the other
 * end may send of stdin is limited by credit, so signals and sizes never wait behind
 * it. When the connection goes, so does the command: it gets SIGHUP, as from a
 * terminal that is hung up.
 */
#include "copy.h"
#include "frames.h"
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUTPUT_MAX	(256u << 10)	/* of output that waits for the other end */
#define CREDIT_STEP	(32u << 10)
#define END_OF_INPUT	"\004"		/* what a terminal sends for Ctrl-D */

static struct {
	pid_t pid;
	bool reaped;
	int status;
	int tty;		/* the pty's master, or -1 */
	int in, out, err;	/* -1: closed */
	bool ended;		/* no stdin follows */
	bool told;		/* that nobody reads stdin */
	size_t start, len;	/* input[start .. start+len) is for the command */
	size_t owed;		/* credit that was not given back yet */
} job = { .tty = -1, .in = -1, .out = -1, .err = -1 };

static char input[2 * FRAME_WINDOW];	/* not in `job`, which the binary's file holds */

static void refuse(const char *why) __attribute__((noreturn));
static void refuse(const char *why)
{
	frame_put_text(FRAME_ERROR, "%s", why);
	frame_finish();
}

/* The command's terminal, and what it left there, go with the process. */
static void hang_up(void) __attribute__((noreturn));
static void hang_up(void)
{
	if (job.pid && !job.reaped) {
		kill(-job.pid, SIGHUP);
		kill(-job.pid, SIGCONT);
	}
	_exit(0);
}

/* --- the request --- */

static bool is_directory(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* NAME=value behind what was asked for, which comes first. `n` is how many there are; there is room. */
static void add_default(char **env, int *n, const char *name, const char *value)
{
	size_t len = strlen(name);
	int i;

	for (i = 0; i < *n; i++)
		if (!strncmp(env[i], name, len) && env[i][len] == '=')
			return;
	env[*n] = grow(NULL, len + strlen(value) + 2);
	sprintf(env[*n], "%s=%s", name, value);
	env[++*n] = NULL;
}

static void add_environment(struct order *order, const struct user *user)
{
	int n = 0;

	while (order->env[n])
		n++;
	order->env = grow(order->env, (n + 5) * sizeof(char *));
	add_default(order->env, &n, "HOME", user->home);
	add_default(order->env, &n, "SHELL", user->shell);
	if (user->name[0]) {
		add_default(order->env, &n, "USER", user->name);
		add_default(order->env, &n, "LOGNAME", user->name);
	}
}

/* Take `login` and `user=` out of the options; the end of the options. */
static int take_options(struct words *w, bool *login, const char **user)
{
	int from, to = 1;

	for (from = 1; from < w->n && strcmp(w->v[from], "--"); from++) {
		if (!strcmp(w->v[from], "login"))
			*login = true;
		else if (!strncmp(w->v[from], "user=", 5))
			*user = w->v[from] + 5;
		else
			w->v[to++] = w->v[from];
	}
	if (from < w->n && to < from) {
		memmove(w->v + to, w->v + from, (w->n - from + 1) * sizeof(char *));
		w->n -= from - to;
	} else if (from == w->n) {
		w->n = to;
	}
	return to;
}

/* A login shell by its other name: `-sh`. */
static void become_login(struct words *w, int end, const char *shell)
{
	const char *base = strrchr(shell, '/');
	char *name;

	base = base ? base + 1 : shell;
	name = grow(NULL, strlen(base) + 2);
	sprintf(name, "-%s", base);
	w->v = grow(w->v, (end + 3) * sizeof(char *));
	w->v[end] = "--";
	w->v[end + 1] = name;
	w->v[end + 2] = NULL;
	w->n = end + 2;
}

static const char *prepare(struct words *w, struct order *order)
{
	const char *wanted = NULL, *why;
	bool login = false;
	struct user user;
	int end;

	end = take_options(w, &login, &wanted);
	why = user_find(wanted ? wanted : "0", &user);
	if (why)
		return why;
	if (login)
		become_login(w, end, user.shell);
	why = order_parse(w, order);
	if (why)
		return why;
	if (order->tty == TTY_CONSOLE)
		return "exec: the console is init's";
	if (login)
		order->program = user.shell;
	if (wanted) {
		order->as_user = true;
		order->uid = user.uid;
		order->gid = user.gid;
		order->ngroups = user.ngroups;
		memcpy(order->groups, user.groups, sizeof(user.groups));
	}
	if (!order->cwd)
		order->cwd = is_directory(user.home) ? user.home : "/";
	add_environment(order, &user);
	return NULL;
}

static void start(struct words *w)
{
	int theirs[3], ours[3] = { -1, -1, -1 }, failed, i;
	struct order order;
	char why[512];
	const char *refused;

	refused = prepare(w, &order);
	if (refused)
		refuse(refused);
	if (order.tty == TTY_NONE) {
		failed = order_pipes(theirs, ours);
	} else {
		failed = order_pty(&order.size, theirs, &job.tty);
		ours[0] = fcntl(job.tty, F_DUPFD_CLOEXEC, 0);
		ours[1] = fcntl(job.tty, F_DUPFD_CLOEXEC, 0);
	}
	job.in = ours[0];
	job.out = ours[1];
	job.err = ours[2];
	if (!failed)
		failed = order_spawn(&order, theirs, &job.pid);
	for (i = 0; i < 3; i++)
		close_fd(&theirs[i]);
	if (failed) {
		snprintf(why, sizeof(why), "%.200s (in %.200s): %s",
			 order.program ? order.program : order.argv[0], order.cwd, strerror(failed));
		refuse(why);
	}
	frame_put_text(FRAME_STARTED, "%d", job.pid);
}

/* --- while it runs --- */

static void take_input(const struct frame *frame)
{
	if (frame->len > FRAME_WINDOW - job.len || job.ended)
		hang_up();	/* more than there was credit for */
	if (job.in < 0) {
		job.owed += frame->len;
		return;
	}
	if (job.start + job.len + frame->len > sizeof(input)) {
		memmove(input, input + job.start, job.len);
		job.start = 0;
	}
	memcpy(input + job.start + job.len, frame->data, frame->len);
	job.len += frame->len;
}

static void resize(const struct words *w)
{
	struct winsize size = { 0 };

	if (w->n != 2 || job.tty < 0)
		return;
	size.ws_col = atoi(w->v[0]);
	size.ws_row = atoi(w->v[1]);
	ioctl(job.tty, TIOCSWINSZ, &size);
}

/* To the command's process group; on a terminal to the group in its foreground as well. */
static void signal_job(int number)
{
	pid_t foreground;

	if (job.reaped || number <= 0)
		return;
	kill(-job.pid, number);
	if (job.tty >= 0 && !ioctl(job.tty, TIOCGPGRP, &foreground) && foreground > 1 &&
	    foreground != job.pid)
		kill(-foreground, number);
}

static void obey(struct frame *frame)
{
	static struct words words;

	switch (frame->kind) {
	case FRAME_DATA:
		take_input(frame);
		break;
	case FRAME_EOF:
		job.ended = true;
		break;
	case FRAME_WINSIZE:
		if (words_split(frame->data, &words))
			resize(&words);
		break;
	case FRAME_SIGNAL:
		signal_job(atoi(frame->data));
		break;
	default:
		hang_up();
	}
}

static void pump_input(void)
{
	ssize_t n;

	while (job.len && job.in >= 0) {
		n = write(job.in, input + job.start, job.len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {	/* nobody reads */
			close_fd(&job.in);
			break;
		}
		job.start += n;
		job.len -= n;
		job.owed += n;
	}
	if (job.in >= 0 && job.ended && !job.len) {
		if (job.tty >= 0 && write(job.in, END_OF_INPUT, 1) < 0)
			complain("end of file to the pty: %s", strerror(errno));
		close_fd(&job.in);
		job.told = true;
	}
	if (job.in < 0) {
		job.owed += job.len;
		job.len = 0;
		if (!job.told && !job.reaped)
			frame_put(FRAME_EOF, NULL, 0);
		job.told = true;
	}
	if (job.owed >= CREDIT_STEP) {
		frame_put_text(FRAME_CREDIT, "%zu", job.owed);
		job.owed = 0;
	}
}

static void pump_output(enum frame_kind kind, int *fd)
{
	ssize_t n;

	while (*fd >= 0 && frame_waiting() < OUTPUT_MAX) {
		n = frame_put_read(kind, *fd, FRAME_DATA_MAX);
		if (n < 0 && errno == EAGAIN && !job.reaped)
			return;
		if (n <= 0)	/* the end, or (EAGAIN) all that the command left */
			close_fd(fd);
	}
}

static void reap(int fd)
{
	struct signalfd_siginfo info;

	while (read(fd, &info, sizeof(info)) == sizeof(info))
		;
	if (!job.reaped && waitpid(job.pid, &job.status, WNOHANG) == job.pid) {
		job.reaped = true;
		close_fd(&job.in);
	}
}

static void finish(void) __attribute__((noreturn));
static void finish(void)
{
	if (WIFSIGNALED(job.status))
		frame_put_text(FRAME_EXIT, "signal %d", WTERMSIG(job.status));
	else
		frame_put_text(FRAME_EXIT, "code %d", WEXITSTATUS(job.status));
	close_fd(&job.tty);
	frame_finish();
}

/* An interface that was plugged in: `net ADDRESS HOW`, the one on PCI, the other as of unikvm.net= (guest-init.md). */
static void set_up_network(const char *slot, const char *how) __attribute__((noreturn));
static void set_up_network(const char *slot, const char *how)
{
	char why[256];

	if (!net_plugged(slot, how, why, sizeof(why)))
		refuse(why);
	frame_put_text(FRAME_EXIT, "code 0");
	frame_finish();
}

static int child_signals(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_SETMASK, &set, NULL);
	fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (fd < 0)
		refuse("signalfd");
	return fd;
}

static void relay(int signals) __attribute__((noreturn));
static void relay(int signals)
{
	struct frame frame;
	bool full;

	for (;;) {
		while (frame_next(&frame))
			obey(&frame);
		pump_input();
		pump_output(FRAME_OUT, &job.out);
		pump_output(FRAME_ERR, &job.err);
		if (!frame_flush())
			hang_up();
		if (job.reaped && job.out < 0 && job.err < 0)
			finish();
		full = frame_waiting() >= OUTPUT_MAX;
		struct pollfd fds[] = {
			{ .fd = frame_fd, .events = POLLIN | (frame_waiting() ? POLLOUT : 0) },
			{ .fd = signals, .events = POLLIN },
			{ .fd = job.len ? job.in : -1, .events = POLLOUT },
			{ .fd = full ? -1 : job.out, .events = POLLIN },
			{ .fd = full ? -1 : job.err, .events = POLLIN },
		};
		if (poll(fds, 5, -1) < 0 && errno != EINTR)
			hang_up();
		if (fds[1].revents)
			reap(signals);
		if (fds[0].revents & ~POLLOUT && !frame_fill())
			hang_up();
	}
}

void session_run(int fd)
{
	struct words words = { 0 };
	struct frame frame;
	int signals;
	char *line;

	frame_fd = fd;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	signal(SIGCHLD, SIG_DFL);
	signals = child_signals();
	frame_wait(&frame);
	frame_put_text(FRAME_HELLO, AGENT_PROTOCOL);
	line = frame.kind == FRAME_REQUEST ? strdup(frame.data) : NULL;	/* the words live on */
	if (!line || strlen(line) != frame.len || !words_split(line, &words))
		refuse("malformed request");
	if (!strcmp(words.v[0], "exec")) {
		start(&words);
		relay(signals);
	} else if (!strcmp(words.v[0], "put") && words.n == 4) {
		copy_put(words.v[1], words.v[2], !strcmp(words.v[3], "into"));
	} else if (!strcmp(words.v[0], "get") && words.n == 2) {
		copy_get(words.v[1]);
	} else if (!strcmp(words.v[0], "net") && words.n == 3) {
		set_up_network(words.v[1], words.v[2]);
	}
	refuse("no such request");
}

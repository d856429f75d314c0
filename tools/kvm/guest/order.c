// SPDX-License-Identifier: GPL-2.0-only
/* Children: from an `exec` line to a process, and the shell on the console. */
#include "order.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIPE_SIZE	(256 << 10)	/* bytes: fewer changes between the command and its other end */
#define PATH_DEFAULT	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* UID:GID[,GROUP]... in decimal; false where it is something else. */
static bool parse_user(const char *text, struct order *order)
{
	const char *end;

	if (!parse_id(text, &end, &order->uid) || *end != ':')
		return false;
	order->ngroups = 0;
	do {
		if (order->ngroups == MAX_GROUPS ||
		    !parse_id(end + 1, &end, &order->groups[order->ngroups++]))
			return false;
	} while (*end == ',');
	order->gid = order->groups[0];
	order->as_user = true;
	return !*end;
}

/* exec [tty=pty|console] [cols=N] [rows=N] [cwd=DIR] [user=UID:GID,...] [env=NAME=VALUE]... -- ARGV... */
const char *order_parse(struct words *w, struct order *order)
{
	static char why[128];
	int i, envc = 0;
	char *word;

	*order = (struct order){ 0 };
	order->env = grow(NULL, (w->n + 1) * sizeof(char *));
	order->env[envc++] = PATH_DEFAULT;	/* the first one counts: dropped when one is given */
	for (i = 1; i < w->n && strcmp(w->v[i], "--"); i++) {
		word = w->v[i];
		if (!strcmp(word, "tty=pty"))
			order->tty = TTY_PTY;
		else if (!strcmp(word, "tty=console"))
			order->tty = TTY_CONSOLE;
		else if (!strncmp(word, "cols=", 5))
			order->size.ws_col = atoi(word + 5);
		else if (!strncmp(word, "rows=", 5))
			order->size.ws_row = atoi(word + 5);
		else if (!strncmp(word, "cwd=", 4))
			order->cwd = word + 4;
		else if (!strncmp(word, "user=", 5) && parse_user(word + 5, order))
			;
		else if (!strncmp(word, "env=PATH=", 9))
			order->env[0] = word + 4;
		else if (!strncmp(word, "env=", 4))
			order->env[envc++] = word + 4;
		else
			goto bad;
	}
	order->env[envc] = NULL;
	if (i + 1 < w->n) {
		order->argv = w->v + i + 1;
		return NULL;
	}
	word = "no command after --";
bad:
	free(order->env);
	snprintf(why, sizeof(why), "exec: %.80s", word);
	return why;
}

/* Become a session leader with `fd` as controlling terminal and standard descriptors. */
static void take_tty(int fd)
{
	ioctl(fd, TIOCSCTTY, 1);
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

/* What every child does before it becomes the command. */
static void child_setup(void)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	oom_adjust("0");	/* the agent's own is not for commands */
}

/* The user's terminal belongs to the user, as after a login. */
static bool become(const struct order *order)
{
	if (!order->as_user)
		return true;
	if (order->tty != TTY_NONE && fchown(STDIN_FILENO, order->uid, order->gid))
		return false;
	return !setgroups(order->ngroups, order->groups) && !setgid(order->gid) && !setuid(order->uid);
}

static void child_run(const struct order *order, const int fds[3], int report)
{
	int failed;

	child_setup();
	if (order->tty == TTY_NONE) {
		dup2(fds[0], STDIN_FILENO);
		dup2(fds[1], STDOUT_FILENO);
		dup2(fds[2], STDERR_FILENO);
	} else {
		take_tty(fds[0]);
	}
	environ = order->env;
	if (become(order) && !chdir(order->cwd))
		execvp(order->program ? order->program : order->argv[0], order->argv);
	failed = errno;
	if (write(report, &failed, sizeof(failed)) < 0)
		_exit(126);
	_exit(127);
}

static bool nonblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && !fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

int order_pipes(int theirs[3], int ours[3])
{
	int i, pair[2];

	for (i = 0; i < 3; i++)
		theirs[i] = ours[i] = -1;
	for (i = 0; i < 3; i++) {
		if (pipe2(pair, O_CLOEXEC))
			return errno;
		theirs[i] = pair[!!i];	/* it reads the first and writes the others */
		ours[i] = pair[!i];
		fcntl(ours[i], F_SETPIPE_SZ, PIPE_SIZE);	/* one that stays smaller is slower, no more */
		if (!nonblock(ours[i]))
			return errno;
	}
	return 0;
}

int order_pty(const struct winsize *size, int theirs[3], int *master)
{
	int unlock = 0;

	theirs[0] = theirs[1] = theirs[2] = -1;
	*master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (*master < 0 || ioctl(*master, TIOCSPTLCK, &unlock))
		return errno;
	theirs[0] = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (theirs[0] < 0)
		return errno;
	if (size->ws_col)
		ioctl(*master, TIOCSWINSZ, size);
	return 0;
}

/* Fork and exec; 0, or the errno of chdir or exec (the report pipe closes by itself when exec worked). */
int order_spawn(const struct order *order, const int fds[3], pid_t *pid)
{
	int report[2], failed = 0;
	ssize_t n;

	if (pipe2(report, O_CLOEXEC))
		return errno;
	*pid = fork();
	if (!*pid)
		child_run(order, fds, report[1]);
	if (*pid < 0)
		failed = errno;
	close(report[1]);
	if (!failed) {
		do {
			n = read(report[0], &failed, sizeof(failed));
		} while (n < 0 && errno == EINTR);
		if (n != sizeof(failed))
			failed = 0;
	}
	close(report[0]);
	if (failed && *pid > 0)
		waitpid(*pid, NULL, 0);
	return failed;
}

/* An interactive shell on the console; back when it ended. */
void run_shell(void)
{
	char *argv[] = { "sh", "-i", NULL }, term[64];
	pid_t pid, got;
	int tty;

	pid = fork();
	if (pid < 0) {
		complain("fork: %s", strerror(errno));
		return;
	}
	if (!pid) {
		child_setup();
		tty = console_open(O_RDWR);
		if (tty >= 0)
			take_tty(tty);
		putenv(PATH_DEFAULT);
		putenv("HOME=/");
		if (!getenv("TERM") && cmdline_value("TERM", term, sizeof(term)))
			setenv("TERM", term, 1);
		execvp(argv[0], argv);
		complain("no shell: %s (is there a busybox in the initramfs?)", strerror(errno));
		_exit(127);
	}
	do {
		got = wait(NULL);	/* reaps orphans as well */
	} while (got != pid && (got > 0 || errno == EINTR));
}

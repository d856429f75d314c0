// SPDX-License-Identifier: GPL-2.0-only
/*
 * The agent: brings the machine's monitor to commands and files of this guest over
 * vsock, without a network. It does not listen, it dials: one connection to the
 * monitor always waits for a request, and becomes a process of its own when one
 * comes. So the monitor knows when we are ready, and nobody else on its host can
 * come to us. It listens on the port that has the number of our CID, and believes a
 * port that only root may dial from.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define FIRST_PORT	512	/* of those that only root may use */
#define LAST_PORT	1023
#define FIRST_NAP	10000	/* us before the second try to dial; doubled each time */
#define LAST_NAP	640000

static unsigned int local_cid(void)
{
	int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
	unsigned int cid = VMADDR_CID_ANY;

	if (fd < 0)
		return VMADDR_CID_ANY;
	if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid))
		cid = VMADDR_CID_ANY;
	close(fd);
	return cid;
}

/* Each time another port: the other end may still know the last connection from one. */
static bool bind_reserved(int fd)
{
	static unsigned int next;
	struct sockaddr_vm from = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	int tries;

	for (tries = 0; tries <= LAST_PORT - FIRST_PORT; tries++) {
		from.svm_port = LAST_PORT - next++ % (LAST_PORT - FIRST_PORT + 1);
		if (!bind(fd, (struct sockaddr *)&from, sizeof(from)))
			return true;
		if (errno != EADDRINUSE)
			return false;
	}
	return false;
}

static int dial(void)
{
	struct sockaddr_vm to = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	to.svm_port = local_cid();	/* another one after the machine was restored */
	if (bind_reserved(fd) && !connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return fd;
	close(fd);
	return -1;
}

/* Wait for a request; false where the connection ends without one. */
static bool requested(int fd)
{
	char byte;

	while (!wait_fd(fd, POLLIN, -1))
		;
	return recv(fd, &byte, 1, MSG_PEEK) == 1;
}

/* Serve for ever. */
void agent_run(void)
{
	unsigned int us = FIRST_NAP;
	pid_t pid;
	int fd;

	signal(SIGCHLD, SIG_IGN);	/* sessions end by themselves */
	oom_adjust("-1000");	/* among small processes it would go first, and the way in with it */
	for (;;) {
		fd = dial();
		if (fd < 0 || !requested(fd)) {
			if (fd >= 0)
				close(fd);
			nap(us);
			us = us < LAST_NAP ? 2 * us : us;
			continue;
		}
		us = FIRST_NAP;
		pid = fork();
		if (!pid)
			session_run(fd);
		if (pid < 0)
			complain("agent: fork: %s", strerror(errno));
		close(fd);
	}
}

static void close_all(void)
{
	int fd;

	for (fd = STDERR_FILENO + 1; fd < 64; fd++)	/* the few that init opens */
		close(fd);
}

/* Where the monitor said that there is one: start the agent, once, beside init. */
void agent_start(void)
{
	static bool started;
	char value[8];
	sigset_t none;

	if (started || !cmdline_value("unikvm.agent", value, sizeof(value)))
		return;
	started = true;
	if (local_cid() == VMADDR_CID_ANY)	/* no device, or no driver: the monitor says so */
		return;
	if (fork())
		return;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	close_all();
	prctl(PR_SET_NAME, "unikvm-agent");
	agent_run();
	_exit(0);
}

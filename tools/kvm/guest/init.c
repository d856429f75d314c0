// SPDX-License-Identifier: GPL-2.0-only
/*
 * unikvm's init: process 1 of guests and of host VMs, one static binary.
 *
 * With `unikvm.ctl` on the kernel command line it obeys the ctl port (a host
 * VM always does); without, it runs a shell on the console. Either way it
 * powers the machine off at the end. Everything else is in
 * Documentation/guest-init.md.
 */
#include "init.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void set_hostname(void)
{
	char name[65];

	if (!cmdline_value("unikvm.hostname", name, sizeof(name)) || !name[0])
		strcpy(name, "unikvm");
	if (sethostname(name, strlen(name)))
		complain("sethostname: %s", strerror(errno));
}

/*
 * For other guests, `init --agent` is the agent alone. For tests on any Linux, `init --session` serves a session on
 * descriptor 3, and `init --serve` obeys the descriptors 3 (ctl) to 6 (stderr).
 */
static void serve(const char *what)
{
	int port;

	if (!strcmp(what, "--agent"))
		agent_run();
	if (!strcmp(what, "--session"))
		session_run(3);
	if (strcmp(what, "--serve"))
		return;

	for (port = PORT_CTL; port < PORT_COUNT; port++)
		port_fd[port] = 3 + port;
	ctl_serve();
}

int main(int argc, char **argv)
{
	char value[8];
	bool host;

	signal(SIGPIPE, SIG_IGN);
	if (getpid() != 1) {
		if (argc == 2)
			serve(argv[1]);
		complain("this is the init of unikvm's machines: it runs as process 1");
		return EXIT_FAILURE;
	}
	boot_mounts();
	host = cmdline_value("unikvm.role", value, sizeof(value)) && !strcmp(value, "host");
	if (host)
		boot_host();
	boot_modules();
	set_hostname();
	net_start();
	boot_applets();
	plug_start();
	if (host || cmdline_value("unikvm.ctl", value, sizeof(value))) {
		if (port_open(PORT_CTL, PORT_PATIENCE))
			ctl_serve();
	} else {
		agent_start();
		run_shell();
	}
	power_off();
}

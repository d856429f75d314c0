/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of unikvm's init share. The protocol and the duties are
 * described in Documentation/guest-init.md.
 */
#ifndef UNIKVM_INIT_H
#define UNIKVM_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROTOCOL	"3"	/* wire.PROTOCOL of the user half */
#define PORT_PATIENCE	15000	/* ms until a missing port is an error */

enum port { PORT_CTL, PORT_STDIN, PORT_STDOUT, PORT_STDERR, PORT_COUNT };

struct words {
	char **v;		/* NULL-terminated */
	int n, size;		/* size: how many v has room for */
};

/* util.c */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void *grow(void *old, size_t size);	/* realloc that ends init, not returns NULL */
void close_fd(int *fd);	/* where it is open; -1 from then on */
void nap(unsigned int us);
long long now_ms(void);
ssize_t read_file(const char *path, char *buf, size_t size);
bool parse_id(const char *text, const char **end, unsigned int *id);
void oom_adjust(const char *value);
bool make_dirs(const char *path);
bool cmdline_value(const char *key, char *value, size_t size);
void power_off(void) __attribute__((noreturn));

/* boot.c */
void boot_mounts(void);
void boot_host(void);
void boot_modules(void);
void boot_applets(void);
const char *module_insert(const char *path, const char *params);
int console_open(int flags);

/* net.c */
void net_start(void);
bool net_plugged(const char *slot, const char *how, char *why, size_t size);
void net_resolver(void);	/* write what the network said into /etc/resolv.conf */

/* plug.c */
void plug_start(void);

/* ports.c */
extern int port_fd[PORT_COUNT];
bool port_open(enum port port, int patience_ms);
bool wait_fd(int fd, short events, int timeout_ms);

/* words.c */
bool words_split(char *line, struct words *words);

/* ctl.c */
void ctl_serve(void) __attribute__((noreturn));
void ctl_send(const char *verb, ...) __attribute__((sentinel));
void ctl_send_data(const char *verb, const void *data, size_t len);

/* job.c */
struct pollfd;
#define JOB_POLL	6
const char *job_start(struct words *words, pid_t *pid);
void job_eof(uint64_t total);
void job_winsize(unsigned int cols, unsigned int rows);
void job_signal(int signum);
void job_hangup(enum port port);	/* PORT_STDOUT or PORT_STDERR */
void job_reaped(pid_t pid, int status);
void job_poll(struct pollfd *fds);
void job_pump(void);
void run_shell(void);

/* agent.c */
void agent_start(void);
void agent_run(void);
void session_run(int fd) __attribute__((noreturn));

/* root.c */
const char *root_mount(const char *fstype, const char *tag, const char *options, bool foreign);
const char *bind_mount(const char *source, const char *path);
const char *share_mount(const char *fstype, const char *tag, const char *path,
			const char *options);

#endif

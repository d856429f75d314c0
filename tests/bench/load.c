// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a guest is kept busy with, the same for each VMM: static, so that it runs in any initramfs and in the host.
 *
 * load read FILE rand|seq BYTES DEPTH COUNT   COUNT direct reads of BYTES, DEPTH at a time under way
 * load serve PORT                             the other end of the next three; answers each connection in a child
 * load send|recv ADDRESS PORT BYTES           a stream of BYTES, there or back
 * load ping ADDRESS PORT COUNT                COUNT times a byte there and a byte back
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_DEPTH	256
#define ALIGN		4096
#define CHUNK		(128 << 10)

static char chunk[CHUNK];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Numbers that look random and are the same in each run (xorshift64). */
static uint64_t next_random(void)
{
	static uint64_t state = 0x9E3779B97F4A7C15;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t size_of(int fd)
{
	struct stat status;
	uint64_t size;

	if (fstat(fd, &status))
		die("fstat");
	if (!S_ISBLK(status.st_mode))
		return status.st_size;
	if (ioctl(fd, BLKGETSIZE64, &size))
		die("BLKGETSIZE64");
	return size;
}

/* As many new reads as there are free ones, in one call: what comes back together goes out together. */
static void submit(aio_context_t context, struct iocb **list, long count)
{
	while (count) {
		long done = syscall(SYS_io_submit, context, count, list);

		if (done < 0)
			die("io_submit");
		list += done;
		count -= done;
	}
}

static int read_blocks(char **argv)
{
	static struct iocb blocks[MAX_DEPTH], *list[MAX_DEPTH];
	static struct io_event events[MAX_DEPTH];
	int random = !strcmp(argv[1], "rand");
	uint64_t bytes = strtoull(argv[2], NULL, 0), depth = strtoull(argv[3], NULL, 0);
	uint64_t left = strtoull(argv[4], NULL, 0), next = 0, slots, underway = 0;
	int fd = open(argv[0], O_RDONLY | O_DIRECT);
	aio_context_t context = 0;
	long ready = 0, i;
	void *buffers;

	if (fd < 0)
		die(argv[0]);
	if (!depth || depth > MAX_DEPTH || posix_memalign(&buffers, ALIGN, bytes * depth))
		die("buffers");
	memset(buffers, 1, bytes * depth);
	slots = size_of(fd) / bytes;
	if (!slots || syscall(SYS_io_setup, depth, &context))
		die("io_setup");
	for (i = 0; i < (long)depth; i++) {
		blocks[i].aio_fildes = fd;
		blocks[i].aio_lio_opcode = IOCB_CMD_PREAD;
		blocks[i].aio_buf = (uintptr_t)buffers + i * bytes;
		blocks[i].aio_nbytes = bytes;
		list[ready++] = &blocks[i];
	}
	while (left || underway) {
		long count = ready < (long)left ? ready : (long)left;

		for (i = 0; i < count; i++)
			list[i]->aio_offset = (random ? next_random() : next++) % slots * bytes;
		submit(context, list, count);
		left -= count;
		underway += count;
		ready = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
		if (ready < 0)
			die("io_getevents");
		underway -= ready;
		for (i = 0; i < ready; i++) {
			list[i] = (struct iocb *)(uintptr_t)events[i].obj;
			if (events[i].res != (long long)bytes) {
				fprintf(stderr, "a read gave %lld\n", (long long)events[i].res);
				return 1;
			}
		}
	}
	return 0;
}

static void put(int fd, const void *data, size_t count)
{
	ssize_t done;

	for (; count; count -= done, data = (const char *)data + done) {
		done = write(fd, data, count);
		if (done < 0)
			die("write");
	}
}

static void put_stream(int fd, uint64_t bytes)
{
	while (bytes) {
		size_t count = bytes < CHUNK ? bytes : CHUNK;

		put(fd, chunk, count);
		bytes -= count;
	}
}

/* To the other end's end. */
static uint64_t get_stream(int fd)
{
	uint64_t total = 0;
	ssize_t count;

	while ((count = read(fd, chunk, CHUNK)) > 0)
		total += count;
	if (count < 0)
		die("read");
	return total;
}

static void no_delay(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		die("TCP_NODELAY");
}

/* The first byte says what is wanted: s and r, with 8 bytes of a count, or p. */
static int answer(int fd)
{
	uint64_t bytes = 0;
	char what, ball;

	no_delay(fd);
	if (read(fd, &what, 1) != 1)
		return 1;
	if (what == 'p') {
		while (read(fd, &ball, 1) == 1)
			put(fd, &ball, 1);
		return 0;
	}
	if (recv(fd, &bytes, sizeof(bytes), MSG_WAITALL) != sizeof(bytes))
		return 1;
	if (what == 'r')
		put_stream(fd, bytes);
	else if (get_stream(fd) == bytes)
		put(fd, "", 1);
	return 0;
}

static int serve(char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[0])) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1, other;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 16))
		die("listen");
	signal(SIGCHLD, SIG_IGN);
	puts("serving");
	fflush(stdout);
	while ((other = accept(fd, NULL, NULL)) >= 0) {
		if (!fork())
			_exit(answer(other));
		close(other);
	}
	return 1;
}

static int talk(const char *kind, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	uint64_t count = strtoull(argv[2], NULL, 0);
	char ball;

	inet_aton(argv[0], &address.sin_addr);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	no_delay(fd);
	put(fd, kind, 1);
	if (*kind == 'p') {
		for (; count; count--) {
			put(fd, kind, 1);
			if (read(fd, &ball, 1) != 1)
				die("read");
		}
		return 0;
	}
	put(fd, &count, sizeof(count));
	if (*kind == 'r')
		return get_stream(fd) != count;
	put_stream(fd, count);
	shutdown(fd, SHUT_WR);
	return read(fd, &ball, 1) != 1;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (argc == 7 && !strcmp(what, "read"))
		return read_blocks(argv + 2);
	if (argc == 3 && !strcmp(what, "serve"))
		return serve(argv + 2);
	if (argc == 5 && (!strcmp(what, "send") || !strcmp(what, "recv") || !strcmp(what, "ping")))
		return talk(what, argv + 2);
	fputs("usage: load read|serve|send|recv|ping ...\n", stderr);
	return 2;
}

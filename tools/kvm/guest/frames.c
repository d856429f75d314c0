// SPDX-License-Identifier: GPL-2.0-only
/* Frames in and out: two buffers, and the connection. One session a process, so there is one of each. */
#include "frames.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_CHUNK	(128u << 10)
#define LAST_WORDS	10000	/* ms that the other end may take to hear the last frame */

int frame_fd = -1;

static struct buffer {
	char *data;
	size_t start, len, size;	/* data[start .. start+len) is unread, or not sent */
	char kept;			/* what stood where the current frame's NUL is */
	char *nul;
} input, output;

/* Room for `more` bytes behind what is there. */
static char *room(struct buffer *b, size_t more)
{
	if (b->start && (!b->len || b->start + b->len + more > b->size)) {
		memmove(b->data, b->data + b->start, b->len);
		b->start = 0;
	}
	if (b->start + b->len + more > b->size) {
		b->size = b->start + b->len + more + b->size / 2;
		b->data = grow(b->data, b->size);
	}
	return b->data + b->start + b->len;
}

/* --- in --- */

static uint32_t head(void)
{
	uint32_t word;

	memcpy(&word, input.data + input.start, sizeof(word));
	return le32toh(word);
}

static size_t limit(enum frame_kind kind)
{
	return kind == FRAME_REQUEST || kind == FRAME_ENTRY ? FRAME_WORDS_MAX : FRAME_DATA_MAX;
}

static void restore_nul(void)
{
	if (input.nul)
		*input.nul = input.kept;
	input.nul = NULL;
}

bool frame_fill(void)
{
	ssize_t n;

	restore_nul();
	n = recv(frame_fd, room(&input, READ_CHUNK + 1), READ_CHUNK, 0);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	input.len += n;
	if (!n)
		return false;
	return input.len < FRAME_HEAD || (head() & 0xffffff) <= limit(head() >> 24);
}

bool frame_next(struct frame *frame)
{
	size_t len;

	restore_nul();
	if (input.len < FRAME_HEAD)
		return false;
	len = head() & 0xffffff;
	if (len > limit(head() >> 24))
		_exit(1);	/* garbage behind frames */
	if (input.len < FRAME_HEAD + len)
		return false;
	frame->kind = head() >> 24;
	frame->len = len;
	frame->data = input.data + input.start + FRAME_HEAD;
	input.start += FRAME_HEAD + len;
	input.len -= FRAME_HEAD + len;
	input.nul = frame->data + len;
	input.kept = *input.nul;
	*input.nul = '\0';
	return true;
}

void frame_wait(struct frame *frame)
{
	while (!frame_next(frame)) {
		wait_fd(frame_fd, POLLIN, -1);
		if (!frame_fill())
			_exit(1);
	}
}

/* --- out --- */

size_t frame_waiting(void)
{
	return output.len;
}

static void put_head(enum frame_kind kind, size_t len)
{
	uint32_t word = htole32((uint32_t)kind << 24 | len);

	memcpy(room(&output, FRAME_HEAD), &word, sizeof(word));
	output.len += FRAME_HEAD;
}

void frame_put(enum frame_kind kind, const void *data, size_t len)
{
	put_head(kind, len);
	if (len)
		memcpy(room(&output, len), data, len);
	output.len += len;
}

void frame_put_text(enum frame_kind kind, const char *fmt, ...)
{
	char text[6000];	/* a path and a reason */
	va_list args;
	int len;

	va_start(args, fmt);
	len = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (len >= (int)sizeof(text))
		len = sizeof(text) - 1;
	frame_put(kind, text, len < 0 ? 0 : len);
}

static void put_word(const char *word)
{
	static const char hex[] = "0123456789ABCDEF";
	char *to = room(&output, 3 * strlen(word));
	const char *from = to;

	for (; *word; word++) {
		if (*word > ' ' && *word < 0x7f && *word != '%') {
			*to++ = *word;
		} else {
			*to++ = '%';
			*to++ = hex[(unsigned char)*word >> 4];
			*to++ = hex[*word & 15];
		}
	}
	output.len += to - from;
}

void frame_put_words(enum frame_kind kind, const char *word, ...)
{
	size_t before;
	uint32_t value;
	va_list args;

	put_head(kind, 0);
	before = output.len;
	va_start(args, word);
	while (word) {
		put_word(word);
		word = va_arg(args, const char *);
		if (word) {
			*room(&output, 1) = ' ';
			output.len++;
		}
	}
	va_end(args);
	value = htole32((uint32_t)kind << 24 | (output.len - before));
	memcpy(output.data + output.start + before - FRAME_HEAD, &value, sizeof(value));
}

ssize_t frame_put_read(enum frame_kind kind, int fd, size_t max)
{
	char *to = room(&output, FRAME_HEAD + FRAME_DATA_MAX);
	ssize_t n;

	do {
		n = read(fd, to + FRAME_HEAD, max < FRAME_DATA_MAX ? max : FRAME_DATA_MAX);
	} while (n < 0 && errno == EINTR);
	if (n > 0) {
		put_head(kind, n);
		output.len += n;
	}
	return n;
}

bool frame_flush(void)
{
	ssize_t n;

	while (output.len) {
		n = send(frame_fd, output.data + output.start, output.len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		output.start += n;
		output.len -= n;
	}
	output.start = 0;
	return true;
}

void frame_drain(void)
{
	while (output.len) {
		if (!frame_flush())
			_exit(1);
		if (output.len)
			wait_fd(frame_fd, POLLOUT, -1);
	}
}

/*
 * The other end closes when it has heard all: to go before that with bytes of its
 * own unread could take the last ones along.
 */
void frame_finish(void)
{
	long long deadline = now_ms() + LAST_WORDS;
	long long left;

	frame_drain();
	while ((left = deadline - now_ms()) > 0 && wait_fd(frame_fd, POLLIN, left)) {
		input.start = input.len = 0;
		if (!frame_fill())
			break;
	}
	_exit(0);
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Frames on the connection of a session: a little-endian word with the length in
 * its low 24 bits and the kind above, then so many bytes. Kinds with words carry
 * a line of them without its newline (wire.py). The other end is
 * tools/kvm/unikvm/remote/frames.py; Documentation/vsock.md has the whole.
 */
#ifndef UNIKVM_FRAMES_H
#define UNIKVM_FRAMES_H

#include "init.h"

#define AGENT_PROTOCOL	"1"		/* frames.PROTOCOL of the user half */
#define FRAME_HEAD	4
#define FRAME_DATA_MAX	65536		/* of D, O and e */
#define FRAME_WORDS_MAX	(8u << 20)	/* of the others: three times what execve takes */
#define FRAME_WINDOW	(256u << 10)	/* of stdin that may be on its way */

enum frame_kind {
	/* both ways */
	FRAME_DATA = 'D',	/* of stdin; of a file */
	FRAME_EOF = 'E',	/* the end of that; from the agent: nobody reads stdin any more */
	/* to the agent */
	FRAME_REQUEST = 'R',	/* words */
	FRAME_WINSIZE = 'W',	/* COLUMNS ROWS */
	FRAME_SIGNAL = 'S',	/* NUMBER */
	/* from the agent */
	FRAME_HELLO = 'H',	/* AGENT_PROTOCOL */
	FRAME_STARTED = 'P',	/* PID */
	FRAME_OUT = 'O',
	FRAME_ERR = 'e',
	FRAME_CREDIT = 'C',	/* so many bytes of stdin may come in addition */
	FRAME_EXIT = 'X',	/* code STATUS, or signal NUMBER */
	FRAME_ERROR = 'F',	/* text: it cannot be, or not go on */
	FRAME_WARNING = 'w',	/* text: this one is left out */
	/* of a copy, from the one who has the files */
	FRAME_ENTRY = 'N',	/* dir NAME MODE MTIME; file NAME MODE MTIME SIZE; link NAME TARGET MTIME */
	FRAME_HOLE = 'L',	/* so many bytes of a file that are zero */
	FRAME_UP = 'U',		/* out of a directory */
	FRAME_DONE = 'Z',	/* all there is; and from the other end: all is written */
};

struct frame {
	enum frame_kind kind;
	char *data;		/* valid until the next frame_next; a NUL follows it */
	size_t len;
};

extern int frame_fd;		/* the connection, non-blocking */

/* Look at what has arrived: false where the other end is gone, or sends what are no frames. */
bool frame_fill(void);
/* The next frame that is here. */
bool frame_next(struct frame *frame);
/* Wait for the next frame; the process ends where none will come. */
void frame_wait(struct frame *frame);

/* Bytes that are not on their way yet. */
size_t frame_waiting(void);
void frame_put(enum frame_kind kind, const void *data, size_t len);
void frame_put_text(enum frame_kind kind, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void frame_put_words(enum frame_kind kind, const char *word, ...) __attribute__((sentinel));
/* Read up to FRAME_DATA_MAX bytes from `fd` into a frame; as read(2), and nothing is put for 0 and -1. */
ssize_t frame_put_read(enum frame_kind kind, int fd, size_t max);
/* Send what can be sent at once; false where the other end is gone. */
bool frame_flush(void);
/* Send everything; the process ends where the other end is gone. */
void frame_drain(void);
/* The last frame has been put: see that it arrives, and end the process. */
void frame_finish(void) __attribute__((noreturn));

#endif

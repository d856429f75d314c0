// SPDX-License-Identifier: GPL-2.0-only
/* Lines of words, as they come on the ctl port and in a session's frames (wire.py is the other end). */
#include "init.h"

#include <string.h>

static int unhex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Decode a word in place; false where it is malformed or has a NUL (words are C strings here). */
static bool decode(char *word)
{
	char *in = word, *out = word;
	int high, low;

	for (; *in; in++, out++) {
		if (*in != '%') {
			*out = *in;
			continue;
		}
		high = unhex(in[1]);
		low = high < 0 ? -1 : unhex(in[2]);
		if (low < 0 || (!high && !low))
			return false;
		*out = high << 4 | low;
		in += 2;
	}
	*out = '\0';
	return true;
}

/* Cut a line into its words, decoded in place. The array is reused from line to line. */
bool words_split(char *line, struct words *words)
{
	char *word, *next;

	words->n = 0;
	for (word = line; word; word = next) {
		next = strchr(word, ' ');
		if (next)
			*next++ = '\0';
		if (words->n + 1 >= words->size) {
			words->size = words->size ? words->size * 2 : 64;
			words->v = grow(words->v, words->size * sizeof(*words->v));
		}
		words->v[words->n++] = word;
		if (!decode(word))
			return false;
	}
	words->v[words->n] = NULL;
	return true;
}

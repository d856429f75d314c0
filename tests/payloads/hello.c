// SPDX-License-Identifier: GPL-2.0-only
/* Greets on COM1 and ends with status `status=` (0). The shortest way through the whole VMM. */
#include "payload.h"

int main(void)
{
	print("hello from the payload\n");
	return option("status", 0);
}

/* SPDX-License-Identifier: MIT */
/*
 * looper.c - runs a command N times, one after the other, as UnixBench's looper does: looper N COMMAND...
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	for (int left = argc > 2 ? atoi(argv[1]) : 0; left > 0; left--) {
		pid_t child = fork();

		if (child < 0) {
			perror("fork");
			return 1;
		}
		if (child == 0) {
			execvp(argv[2], argv + 2);
			perror(argv[2]);
			_exit(1);
		}
		waitpid(child, NULL, 0);
	}
	return 0;
}

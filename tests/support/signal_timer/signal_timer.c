// Preloaded into a program: a timer's signal every millisecond, with a handler that counts its
// calls and those of them that came to another thread than the one that waits for signals. At the
// program's end the two numbers are appended, as a line, to the file that SIGNAL_TIMER_LOG names.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>

static volatile int all, elsewhere;

static void count(int signal) {
  char name[16] = "";
  (void)signal;
  prctl(PR_GET_NAME, name);
  __atomic_add_fetch(&all, 1, __ATOMIC_RELAXED);
  if (strcmp(name, "signals") != 0) __atomic_add_fetch(&elsewhere, 1, __ATOMIC_RELAXED);
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = count;
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, NULL);
  // The first after the program has come to main().
  struct itimerval timer = {{0, 1000}, {0, 100000}};
  setitimer(ITIMER_REAL, &timer, NULL);
}

__attribute__((destructor)) static void end(void) {
  const char* path = getenv("SIGNAL_TIMER_LOG");
  FILE* file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "%d %d\n", all, elsewhere);
  fclose(file);
}

/* Sets the clock of a process off: preloaded, it adds the seconds that a mapped file
 * holds to CLOCK_REALTIME. A test changes them while the process runs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const _Atomic int64_t *seconds;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("MESHCA_TEST_CLOCK");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	if (file < 0)
		abort();
	seconds = mmap(NULL, sizeof *seconds, PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (seconds == MAP_FAILED)
		abort();
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	if (real == NULL)
		begin();
	int result = real(clock, now);

	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += atomic_load(seconds);
	return result;
}

time_t time(time_t *kept)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (kept)
		*kept = now.tv_sec;
	return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec found;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &found);
	now->tv_sec = found.tv_sec;
	now->tv_usec = found.tv_nsec / 1000;
	return 0;
}

/* LD_PRELOAD: a disk and a clock that go wrong, as seen from a process, for kernels without device-mapper.
 *
 * What goes wrong is a file in the directory $LAYERGATE_MISFORTUNE, for as long as it is there:
 *
 *   eio     calls that change regular files fail with EIO, two in three
 *   erofs   calls that change files, or open them for it, fail with EROFS
 *   slow    calls that change files take 1.2 s, one in eight, and the others 5 ms
 *   clock   the time of day is another one, by as many seconds as the file says
 *
 * Pipes, sockets and devices work. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int there(const char *name, char *path, size_t size)
{
    const char *directory = getenv("LAYERGATE_MISFORTUNE");
    int saved = errno;
    int found;

    snprintf(path, size, "%s/%s", directory ? directory : "/nowhere", name);
    found = faccessat(AT_FDCWD, path, F_OK, 0) == 0;
    errno = saved;
    return found;
}

static int one_in(unsigned count)
{
    static __thread unsigned seed;

    if (!seed)
        seed = (unsigned)time(NULL) ^ (unsigned)gettid();
    return rand_r(&seed) % count == 0;
}

/* Whether a call that changes a file fails, with errno set; a slow one is waited for. */
static int strikes(void)
{
    char path[4096];

    if (there("slow", path, sizeof path)) {
        struct timespec wait = one_in(8) ? (struct timespec){1, 200000000} : (struct timespec){0, 5000000};
        nanosleep(&wait, NULL);
    }
    if (there("erofs", path, sizeof path)) {
        errno = EROFS;
        return 1;
    }
    if (there("eio", path, sizeof path) && !one_in(3)) {
        errno = EIO;
        return 1;
    }
    return 0;
}

static int regular(int fd)
{
    struct stat status;
    int saved = errno;
    int found = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);

    errno = saved;
    return found;
}

/* Whether a file is opened to be changed on what is a read-only file system. */
static int refused(const char *path, int flags)
{
    struct stat status;
    char flag[4096];
    int saved = errno;
    int special = stat(path, &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);

    errno = saved;
    if ((flags & O_ACCMODE) == O_RDONLY || special || !there("erofs", flag, sizeof flag))
        return 0;
    errno = EROFS;
    return 1;
}

#define MODE(flags, last)                                     \
    ({                                                        \
        mode_t mode = 0;                                      \
        if ((flags) & (O_CREAT | __O_TMPFILE)) {              \
            va_list rest;                                     \
            va_start(rest, last);                             \
            mode = va_arg(rest, mode_t);                      \
            va_end(rest);                                     \
        }                                                     \
        mode;                                                 \
    })

int open64(const char *path, int flags, ...)
{
    mode_t mode = MODE(flags, flags);

    return refused(path, flags) ? -1 : REAL(open64)(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    mode_t mode = MODE(flags, flags);

    return refused(path, flags) ? -1 : REAL(open)(path, flags, mode);
}

ssize_t write(int fd, const void *data, size_t size)
{
    return regular(fd) && strikes() ? -1 : REAL(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return regular(fd) && strikes() ? -1 : REAL(pwrite64)(fd, data, size, offset);
}

int fsync(int fd)
{
    return strikes() ? -1 : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    return strikes() ? -1 : REAL(fdatasync)(fd);
}

int syncfs(int fd)
{
    return strikes() ? -1 : REAL(syncfs)(fd);
}

int linkat(int from, const char *source, int to, const char *target, int flags)
{
    return strikes() ? -1 : REAL(linkat)(from, source, to, target, flags);
}

int mkdir(const char *path, mode_t mode)
{
    return strikes() ? -1 : REAL(mkdir)(path, mode);
}

int unlink(const char *path)
{
    char flag[4096];

    if (!there("erofs", flag, sizeof flag))
        return REAL(unlink)(path);
    errno = EROFS;
    return -1;
}

int rename(const char *from, const char *to)
{
    char flag[4096];

    if (!there("erofs", flag, sizeof flag))
        return REAL(rename)(from, to);
    errno = EROFS;
    return -1;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    char path[4096];
    int result = REAL(clock_gettime)(clock, now);

    if (result == 0 && clock == CLOCK_REALTIME && there("clock", path, sizeof path)) {
        FILE *file = fopen(path, "r");
        long long seconds;

        if (file) {
            if (fscanf(file, "%lld", &seconds) == 1)
                now->tv_sec += seconds;
            fclose(file);
        }
    }
    return result;
}

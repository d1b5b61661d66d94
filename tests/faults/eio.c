/* LD_PRELOAD: while the file $LAYERGATE_EIO is there, calls that change regular files fail with EIO, two in three.
 *
 * A disk that fails as seen from a process, for kernels without dm-flakey. Pipes, sockets and devices work. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int strikes(void)
{
    static __thread unsigned seed;
    const char *flag = getenv("LAYERGATE_EIO");
    int saved = errno;
    int there = flag && faccessat(AT_FDCWD, flag, F_OK, 0) == 0;

    errno = saved;
    if (!there)
        return 0;
    if (!seed)
        seed = (unsigned)time(NULL) ^ (unsigned)gettid();
    if (rand_r(&seed) % 3 == 0)
        return 0;
    errno = EIO;
    return 1;
}

static int regular(int fd)
{
    struct stat status;
    int saved = errno;
    int found = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);

    errno = saved;
    return found;
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

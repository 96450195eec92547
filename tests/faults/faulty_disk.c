/* A layer between a program and the C library, to be loaded before it (LD_PRELOAD).

   fail_call(n, code, folder): of all calls from now on that change something below a folder (open for writing, write,
   truncate, rename, link, unlink, mkdir, rmdir, fsync), the n-th fails with an error code; n = 0 only counts. Files
   called "output" are left alone. With the variable WITHOUT_LOCKS set, there are neither hard links nor locks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static long calls, failing;
static int code, counting;
static char folder[4096], failed[4200];

void fail_call(long number, int error, const char *where) {
    calls = 0, failing = number, code = error, counting = 1, failed[0] = 0;
    snprintf(folder, sizeof folder, "%s", where);
}
long calls_made(void) { return calls; }
const char *failed_call(void) { return failed; }

#define NEXT(type, name) static type (*next)() = NULL; if (!next) next = (type (*)())dlsym(RTLD_NEXT, name)

static int fails(const char *what, const char *path) {
    char whole[4096];
    if (!counting || !path) return 0;
    if (path[0] != '/') {
        char here[2048];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    size_t length = strlen(path);
    if (strncmp(path, folder, strlen(folder))) return 0;
    if (length >= 7 && !strcmp(path + length - 7, "/output")) return 0;
    snprintf(failed, sizeof failed, "%s %s", what, path);
    if (getenv("TELL_CALLS")) dprintf(2, "CALL %s\n", failed);
    if (++calls != failing) return 0;
    counting = 0;
    errno = code;
    return 1;
}

static int fails_at(const char *what, int descriptor) {
    char link[64], path[4096];
    if (!counting) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(what, path);
}

#define OPEN(name)                                                                         \
    int name(const char *path, int flags, ...) {                                           \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        NEXT(int, #name);                                                                  \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && fails("open", path)) return -1;     \
        return next(path, flags, mode);                                                    \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int d, const void *data, size_t size) {
    NEXT(ssize_t, "write"); return fails_at("write", d) ? -1 : next(d, data, size);
}
ssize_t pwrite64(int d, const void *data, size_t size, off64_t place) {
    NEXT(ssize_t, "pwrite64"); return fails_at("pwrite", d) ? -1 : next(d, data, size, place);
}
int fsync(int d) { NEXT(int, "fsync"); return fails_at("fsync", d) ? -1 : next(d); }
int ftruncate64(int d, off64_t size) { NEXT(int, "ftruncate64"); return fails_at("ftruncate", d) ? -1 : next(d, size); }
int ftruncate(int d, off_t size) { NEXT(int, "ftruncate"); return fails_at("ftruncate", d) ? -1 : next(d, size); }
int rename(const char *a, const char *b) { NEXT(int, "rename"); return fails("rename", a) ? -1 : next(a, b); }
int unlink(const char *path) { NEXT(int, "unlink"); return fails("unlink", path) ? -1 : next(path); }
int rmdir(const char *path) { NEXT(int, "rmdir"); return fails("rmdir", path) ? -1 : next(path); }
int mkdir(const char *path, mode_t mode) { NEXT(int, "mkdir"); return fails("mkdir", path) ? -1 : next(path, mode); }

int link(const char *a, const char *b) {
    NEXT(int, "link");
    if (getenv("WITHOUT_LOCKS")) { errno = EPERM; return -1; }
    return fails("link", a) ? -1 : next(a, b);
}
int linkat(int c, const char *a, int d, const char *b, int flags) {
    NEXT(int, "linkat");
    if (getenv("WITHOUT_LOCKS")) { errno = EPERM; return -1; }
    return fails("link", a) ? -1 : next(c, a, d, b, flags);
}
int flock(int d, int operation) {
    NEXT(int, "flock");
    if (getenv("WITHOUT_LOCKS")) { errno = ENOLCK; return -1; }
    return next(d, operation);
}
static int without_locks(int command) {
    int lock = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    if (lock && getenv("WITHOUT_LOCKS")) { errno = ENOLCK; return 1; }
    return 0;
}
#define FCNTL(name)                                                                          \
    int name(int d, int command, ...) {                                                      \
        va_list more; va_start(more, command); void *argument = va_arg(more, void *); va_end(more); \
        NEXT(int, #name);                                                                    \
        return without_locks(command) ? -1 : next(d, command, argument);                     \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

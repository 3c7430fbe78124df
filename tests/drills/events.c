/* Counts what a process does to the files below a folder, and makes one of these events fail or kill the process.
 *
 * Loaded by LD_PRELOAD, it stands before the C library: Python, and libraries in C and C++ that call these functions,
 * cannot get past it. Nothing happens before drill_arm() is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, KILL, ONCE, FULL, READ_ONLY };

static enum mode armed = OFF;
static long target, seen;
static int reason, journal = -1;
static char root[PATH_MAX];
static size_t root_length;

/* mode; number of the event, from 1 on; errno; folder; descriptor that events are told to, or -1 */
void drill_arm(int mode, long number, int error, const char *folder, int told) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    target = number; reason = error; journal = told; seen = 0;
    armed = (enum mode)mode;
}

long drill_seen(void) { return seen; }

static int below(int at, const char *path, char *whole) {
    char link[64];
    ssize_t n;
    if (path != NULL && path[0] == '/') {
        strncpy(whole, path, PATH_MAX - 1);
    } else {
        if (at == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        n = syscall(SYS_readlink, link, whole, PATH_MAX - 1);
        if (n < 0) return 0;
        whole[n] = 0;
        if (path != NULL && (size_t)n + strlen(path) + 2 < PATH_MAX) { strcat(whole, "/"); strcat(whole, path); }
    }
    return strncmp(whole, root, root_length) == 0 && (whole[root_length] == '/' || whole[root_length] == 0);
}

/* Whether the event has to fail, with errno set. `takes_room`: whether a full disk refuses it. */
static int fails(const char *what, int at, const char *path, int takes_room) {
    char whole[PATH_MAX + 1] = {0}, line[PATH_MAX + 64];
    if (armed == OFF) return 0;
    int before = errno;
    if (!below(at, path, whole)) { errno = before; return 0; }
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (journal >= 0) {
        int n = snprintf(line, sizeof line, "%ld %s %s\n", number, what, whole);
        syscall(SYS_write, journal, line, (size_t)n);
    }
    errno = before;
    if (armed == KILL && number == target) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }
    if ((armed == ONCE && number == target) || (armed == FULL && number >= target && takes_room)
        || (armed == READ_ONLY && number >= target)) { errno = reason; return 1; }
    return 0;
}

#define NEXT(name) static __typeof__(&name) next; if (next == NULL) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(name); va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (WRITES(flags) && fails("open", AT_FDCWD, path, flags & O_CREAT)) return -1; \
        return next(path, flags, mode); }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        NEXT(name); va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (WRITES(flags) && fails("open", at, path, flags & O_CREAT)) return -1; \
        return next(at, path, flags, mode); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
    NEXT(fopen); return strpbrk(mode, "wa+") && fails("open", AT_FDCWD, path, 1) ? NULL : next(path, mode); }
FILE *fopen64(const char *path, const char *mode) {
    NEXT(fopen64); return strpbrk(mode, "wa+") && fails("open", AT_FDCWD, path, 1) ? NULL : next(path, mode); }

ssize_t write(int fd, const void *what, size_t n) {
    NEXT(write); return fails("write", fd, NULL, 1) ? -1 : next(fd, what, n); }
ssize_t pwrite(int fd, const void *what, size_t n, off_t o) {
    NEXT(pwrite); return fails("write", fd, NULL, 1) ? -1 : next(fd, what, n, o); }
ssize_t pwrite64(int fd, const void *what, size_t n, off64_t o) {
    NEXT(pwrite64); return fails("write", fd, NULL, 1) ? -1 : next(fd, what, n, o); }
ssize_t writev(int fd, const struct iovec *what, int n) {
    NEXT(writev); return fails("write", fd, NULL, 1) ? -1 : next(fd, what, n); }
ssize_t sendfile(int fd, int from, off_t *o, size_t n) {
    NEXT(sendfile); return fails("write", fd, NULL, 1) ? -1 : next(fd, from, o, n); }
ssize_t sendfile64(int fd, int from, off64_t *o, size_t n) {
    NEXT(sendfile64); return fails("write", fd, NULL, 1) ? -1 : next(fd, from, o, n); }
int ftruncate(int fd, off_t n) { NEXT(ftruncate); return fails("truncate", fd, NULL, 1) ? -1 : next(fd, n); }
int ftruncate64(int fd, off64_t n) { NEXT(ftruncate64); return fails("truncate", fd, NULL, 1) ? -1 : next(fd, n); }
int fsync(int fd) { NEXT(fsync); return fails("fsync", fd, NULL, 1) ? -1 : next(fd); }
int fdatasync(int fd) { NEXT(fdatasync); return fails("fsync", fd, NULL, 1) ? -1 : next(fd); }
int mkdir(const char *path, mode_t m) {
    NEXT(mkdir); return fails("mkdir", AT_FDCWD, path, 1) ? -1 : next(path, m); }
int mkdirat(int at, const char *path, mode_t m) { NEXT(mkdirat); return fails("mkdir", at, path, 1) ? -1 : next(at, path, m); }
int rename(const char *from, const char *to) {
    NEXT(rename); return fails("rename", AT_FDCWD, to, 0) ? -1 : next(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    NEXT(renameat); return fails("rename", b, to, 0) ? -1 : next(a, from, b, to); }
int unlink(const char *path) { NEXT(unlink); return fails("unlink", AT_FDCWD, path, 0) ? -1 : next(path); }
int unlinkat(int at, const char *path, int f) { NEXT(unlinkat); return fails("unlink", at, path, 0) ? -1 : next(at, path, f); }
int rmdir(const char *path) { NEXT(rmdir); return fails("rmdir", AT_FDCWD, path, 0) ? -1 : next(path); }
int chmod(const char *path, mode_t m) { NEXT(chmod); return fails("chmod", AT_FDCWD, path, 0) ? -1 : next(path, m); }
int fchmod(int fd, mode_t m) { NEXT(fchmod); return fails("chmod", fd, NULL, 0) ? -1 : next(fd, m); }
int fchmodat(int at, const char *path, mode_t m, int f) {
    NEXT(fchmodat); return fails("chmod", at, path, 0) ? -1 : next(at, path, m, f); }
int link(const char *from, const char *to) {
    NEXT(link); return fails("link", AT_FDCWD, to, 1) ? -1 : next(from, to); }
int linkat(int a, const char *from, int b, const char *to, int f) {
    NEXT(linkat); return fails("link", b, to, 1) ? -1 : next(a, from, b, to, f); }
int symlink(const char *what, const char *path) {
    NEXT(symlink); return fails("link", AT_FDCWD, path, 1) ? -1 : next(what, path); }

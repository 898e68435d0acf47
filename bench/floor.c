/*
 * The kernel's own floor under a sandbox: what creating one costs when nothing but the kernel works.
 *
 * Usage: floor WORK_DIR COUNT
 *   COUNT > 0   make that many sandboxes, one after the other
 *   COUNT = 0   make one for each line read from standard input (so that the harness can interleave)
 *
 * One sandbox is: cgroups made; a child in new user, pid, mount, net, ipc, uts and cgroup namespaces, joined to them;
 * an id map of 65536 ids; a tmpfs; an overlay as root, another on /usr, both writable; /proc; pivot_root; one byte sent.
 * Timed from before the first cgroup is made until the byte is read; prints nanoseconds, a line each. What is torn
 * down is torn down outside of the timed part. WORK_DIR holds only the lower directory of the root; the mounts live
 * and die with the child's mount namespace.
 *
 * A line "cgroups: ..." comes first and tells which hierarchies are joined.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The cgroup namespace comes later, by unshare: its root is the group that has been joined by then. */
#define NAMESPACES (CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
#define MAX_GROUPS 3
#ifndef CGROUP_ROOT
#define CGROUP_ROOT "/sys/fs/cgroup"
#endif
#define ID_MAP "0 1879048192 65536\n" /* 0x70000000, above what accounts use */

struct join {
    char made[256]; /* the directory of this sandbox in one hierarchy */
    int fd;         /* v2: that directory, to be cloned into; v1: its `tasks`, to write 0 to */
};

static char lower[4096];
static char parents[MAX_GROUPS][200];
static int group_count;
static int is_v2;

static void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void check(int result, const char *what) {
    if (result < 0)
        fail(what);
}

/* What does not fit would be cut to another path: that is a failure, not a warning. */
static void format(char *buffer, size_t size, const char *pattern, ...) {
    va_list arguments;
    va_start(arguments, pattern);
    int length = vsnprintf(buffer, size, pattern, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= size) {
        errno = ENAMETOOLONG;
        fail(pattern);
    }
}

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    check(fd, path);
    if (write(fd, text, strlen(text)) < 0)
        fail(path);
    close(fd);
}

/*
 * ---- cgroups: v2 where it is the hierarchy of the host, else the v1 trees that are writable ----
 *
 * Both are joined the way that does not take the kernel's global lock over all forks: after a pause of some 50 ms,
 * taking it waits for an RCU grace period, about 10 ms. v2: born there (CLONE_INTO_CGROUP, clone(2)); v1: `tasks`,
 * one thread, oneself. A write to `cgroup.procs` takes it.
 */

static int add_parent(const char *hierarchy) {
    char *path = parents[group_count];
    if (access(hierarchy, W_OK) < 0)
        return 0;
    format(path, sizeof parents[0], "%s/glovebox-floor-%d", hierarchy, getpid());
    if (mkdir(path, 0755) < 0)
        return 0;
    group_count++;
    return 1;
}

/* Where the host has not handed its controllers down, the groups are still made and joined: they cost less then. */
static int enable(const char *subtree_control) {
    const char *controllers = "+memory +pids +cpu";
    int fd = open(subtree_control, O_WRONLY | O_CLOEXEC);
    int enabled = fd >= 0 && write(fd, controllers, strlen(controllers)) > 0;
    if (fd >= 0)
        close(fd);
    return enabled;
}

static void find_cgroups(void) {
    const char *v1[] = {"memory", "pids", "cpu"};
    char text[256] = "", path[256];
    if (access(CGROUP_ROOT "/cgroup.controllers", F_OK) == 0) {
        is_v2 = 1;
        if (add_parent(CGROUP_ROOT)) {
            format(path, sizeof path, "%s/cgroup.subtree_control", parents[0]);
            strcpy(text, enable(path) ? " v2" : " v2 without controllers");
        }
    } else
        for (int i = 0; i < MAX_GROUPS; i++) {
            format(path, sizeof path, CGROUP_ROOT "/%s", v1[i]);
            if (add_parent(path)) {
                strcat(text, " v1:");
                strcat(text, v1[i]);
            }
        }
    printf("cgroups:%s\n", text[0] ? text : " none");
    fflush(stdout);
}

static void remove_parents(void) {
    for (int i = 0; i < group_count; i++)
        rmdir(parents[i]);
}

static void make_groups(struct join *joins, int number) {
    char path[288];
    for (int i = 0; i < group_count; i++) {
        format(joins[i].made, sizeof joins[i].made, "%s/s%d", parents[i], number);
        check(mkdir(joins[i].made, 0755), joins[i].made);
        format(path, sizeof path, is_v2 ? "%s" : "%s/tasks", joins[i].made);
        check(joins[i].fd = open(path, (is_v2 ? O_RDONLY | O_DIRECTORY : O_WRONLY) | O_CLOEXEC), path);
    }
}

static void remove_groups(struct join *joins) {
    for (int i = 0; i < group_count; i++) {
        close(joins[i].fd);
        /* A group is busy for a moment after its last member is gone. */
        for (int attempt = 0; rmdir(joins[i].made) < 0 && errno == EBUSY && attempt < 1000; attempt++)
            usleep(1000);
    }
}

/* ---- the child ---- */

static void mount_or_fail(const char *type, const char *target, unsigned long flags, const char *data) {
    check(mount(type, target, type, flags, data), target);
}

static void enter_root(void) {
    const char *dirs[] = {"up", "work", "usr-up", "usr-work", "new"};
    char options[8300], path[64];
    check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
    mount_or_fail("tmpfs", "/mnt", MS_NOSUID | MS_NODEV, "size=64m,nr_inodes=10000");
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        format(path, sizeof path, "/mnt/%s", dirs[i]);
        check(mkdir(path, 0755), path);
    }
    format(options, sizeof options, "lowerdir=%s,upperdir=/mnt/up,workdir=/mnt/work,userxattr", lower);
    mount_or_fail("overlay", "/mnt/new", MS_NODEV, options);
    mount_or_fail("overlay", "/mnt/new/usr", MS_NODEV,
                  "lowerdir=/usr,upperdir=/mnt/usr-up,workdir=/mnt/usr-work,userxattr");
    mount_or_fail("proc", "/mnt/new/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    check(chdir("/mnt/new"), "chdir");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount");
    check(chdir("/"), "chdir");
}

static void child(int mapped, int ready, struct join *joins) {
    char byte;
    check(prctl(PR_SET_PDEATHSIG, SIGKILL), "pdeathsig"); /* nothing outlives the harness */
    if (read(mapped, &byte, 1) != 1)
        fail("id map");
    for (int i = 0; i < group_count && !is_v2; i++)
        if (write(joins[i].fd, "0", 1) != 1)
            fail(joins[i].made);
    check(setresgid(0, 0, 0), "setresgid");
    check(setresuid(0, 0, 0), "setresuid");
    check(unshare(CLONE_NEWCGROUP), "unshare cgroup");
    enter_root();
    if (write(ready, "r", 1) != 1)
        fail("ready");
    pause(); /* it lives until it is killed, as a sandbox does */
    _exit(0);
}

/* ---- one sandbox ---- */

static void map_ids(pid_t pid) {
    char path[64];
    format(path, sizeof path, "/proc/%d/uid_map", pid);
    write_file(path, ID_MAP);
    format(path, sizeof path, "/proc/%d/gid_map", pid);
    write_file(path, ID_MAP);
}

static pid_t clone_child(struct join *joins) {
    struct clone_args arguments = {.flags = NAMESPACES, .exit_signal = SIGCHLD};
    if (is_v2 && group_count) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = joins[0].fd;
    }
    return syscall(SYS_clone3, &arguments, sizeof arguments);
}

static int one(int number) {
    struct join joins[MAX_GROUPS];
    int mapped[2], ready[2];
    char byte;
    long start = now_ns(), end;
    make_groups(joins, number);
    check(pipe2(mapped, O_CLOEXEC), "pipe");
    check(pipe2(ready, O_CLOEXEC), "pipe");
    pid_t pid = clone_child(joins);
    check(pid, "clone3");
    if (pid == 0) {
        close(mapped[1]);
        close(ready[0]);
        child(mapped[0], ready[1], joins);
    }
    close(ready[1]); /* so that a child that fails is an end of file here */
    map_ids(pid);
    int sent = write(mapped[1], "m", 1) == 1;
    int got = sent && read(ready[0], &byte, 1) == 1;
    end = now_ns();

    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(mapped[0]);
    close(mapped[1]);
    close(ready[0]);
    remove_groups(joins);
    if (got)
        printf("%ld\n", end - start);
    else
        printf("failed\n");
    fflush(stdout);
    return got ? 0 : 1;
}

int main(int argc, char **argv) {
    int failures = 0;
    char line[64];
    if (argc != 3 || argv[1][0] != '/') {
        fprintf(stderr, "usage: floor WORK_DIR COUNT\n");
        return 2;
    }
    signal(SIGINT, SIG_IGN); /* the harness ends us by closing our input */
    signal(SIGPIPE, SIG_IGN);
    format(lower, sizeof lower, "%s/lower", argv[1]);
    long count = strtol(argv[2], NULL, 10);
    find_cgroups();
    if (count == 0)
        for (int i = 0; fgets(line, sizeof line, stdin); i++)
            failures += one(i);
    else
        for (int i = 0; i < count; i++)
            failures += one(i);
    remove_parents();
    return failures ? 1 : 0;
}

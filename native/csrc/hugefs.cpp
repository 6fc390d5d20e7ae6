#include "hugefs.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "driver.h"

namespace vnpu {

namespace {

// The mount's root directory, or minus the errno. System calls only: it also runs in the child of a fork.
int try_mount(const char* size) {
    const Fd context(static_cast<int>(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC)));
    const auto configure = [&context](unsigned command, const char* key, const char* value) {
        return ::syscall(SYS_fsconfig, context.get(), command, key, value, 0) == 0;
    };
    // nr_inodes=0: each chunk is a file, and the default allows one file for every two pages of RAM only.
    const bool ready = context && configure(FSCONFIG_SET_STRING, "huge", "always") &&
                       configure(FSCONFIG_SET_STRING, "size", size) &&
                       configure(FSCONFIG_SET_STRING, "nr_inodes", "0") &&
                       configure(FSCONFIG_CMD_CREATE, nullptr, nullptr);
    const int root =
        ready ? static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NOEXEC)) : -1;
    return root >= 0 ? root : -errno;
}

bool write_file(const char* path, const char* text) {
    const Fd file(::open(path, O_WRONLY | O_CLOEXEC));
    const auto length = static_cast<ssize_t>(std::strlen(text));
    return file && ::write(file.get(), text, static_cast<std::size_t>(length)) == length;
}

struct Errand {
    char size[32];
    char uid_map[48];
    char gid_map[48];
};

// Become root of a new user namespace in which nothing but this user is mapped, and mount there.
int mount_as_namespace_root(const Errand& errand) {
    // A process that changed its uid is not dumpable, and then /proc/self belongs to root.
    ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    const bool inside = ::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 && write_file("/proc/self/setgroups", "deny") &&
                        write_file("/proc/self/uid_map", errand.uid_map) &&
                        write_file("/proc/self/gid_map", errand.gid_map);
    return inside ? try_mount(errand.size) : -errno;
}

// One descriptor, or minus an errno as the message, over a socket.
void send_result(int socket, int result) {
    msghdr message{};
    iovec part{&result, sizeof result};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof result)> control{};
    if (result >= 0) {
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof result);
        std::memcpy(CMSG_DATA(header), &result, sizeof result);
    }
    while (::sendmsg(socket, &message, MSG_NOSIGNAL) < 0 && errno == EINTR) {
    }
}

int receive_result(int socket) {
    int result = -ECHILD;
    msghdr message{};
    iovec part{&result, sizeof result};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof result)> control{};
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ssize_t got = 0;
    do {
        got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (got != sizeof result || (result >= 0 && header == nullptr)) {
        return -ECHILD;
    }
    if (header != nullptr) {
        std::memcpy(&result, CMSG_DATA(header), sizeof result);
    }
    return result;
}

// A process with threads cannot enter a user namespace, so a child does the errand and sends the directory back.
int mount_in_user_namespace(const char* size) {
    Errand errand{};
    std::snprintf(errand.size, sizeof errand.size, "%s", size);
    std::snprintf(errand.uid_map, sizeof errand.uid_map, "0 %u 1", ::geteuid());
    std::snprintf(errand.gid_map, sizeof errand.gid_map, "0 %u 1", ::getegid());
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        return -errno;
    }
    const Fd here(ends[0]);
    Fd there(ends[1]);
    const pid_t child = ::fork();
    if (child < 0) {
        return -errno;
    }
    if (child == 0) {
        send_result(there.get(), mount_as_namespace_root(errand));
        ::_exit(0);
    }
    there = Fd();
    const int result = receive_result(here.get());
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    return result;
}

}  // namespace

Fd mount_huge_tmpfs(std::size_t limit) {
    const std::string size = std::to_string(limit);
    int root = try_mount(size.c_str());
    if (root == -EPERM) {
        root = mount_in_user_namespace(size.c_str());
    }
    if (root < 0) {
        throw errno_error("open_driver", -root, "cannot mount a private tmpfs on huge pages",
                          "allow user namespaces or give CAP_SYS_ADMIN, or use backing memfd (4 KiB pages, slower)");
    }
    return Fd(root);
}

Fd open_tmpfs(const std::string& path) {
    Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct statfs system{};
    if (!directory || ::fstatfs(directory.get(), &system) != 0) {
        throw errno_error("open_driver", errno, "cannot open " + path, "name a folder of a tmpfs that we may write to");
    }
    if (system.f_type != TMPFS_MAGIC) {
        throw errno_error("open_driver", ENOTSUP, path + " is not on a tmpfs",
                          "mount one there: mount -t tmpfs -o huge=always,nr_inodes=0 tmpfs " + path);
    }
    return directory;
}

Fd unnamed_file(const Fd& directory, std::size_t size) {
    Fd file(::openat(directory.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (!file || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0) {
        throw errno_error("create", errno, "cannot make an unnamed file on the driver's tmpfs",
                          errno == EMFILE ? "raise the limit on open files or use larger chunks" : "see the error");
    }
    return file;
}

Fd memory_file(std::size_t size) {
    Fd file(::memfd_create("vnpu-chunk", MFD_CLOEXEC));
    if (!file || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0) {
        throw errno_error("create", errno, "cannot make a memfd",
                          errno == EMFILE ? "raise the limit on open files or use larger chunks" : "see the error");
    }
    return file;
}

}  // namespace vnpu

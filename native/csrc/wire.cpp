#include "wire.h"

#include <poll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <tuple>

#include "crc32c_wide.h"
#include "digest.h"
#include "rows.h"

namespace vnpu {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t parts = 256;         // Linux takes 1024 of them in a call
constexpr std::size_t piece = 256 << 10;   // summed while it is in the second-level cache
constexpr double forever_s = 86400.0;
constexpr auto look = std::chrono::milliseconds(1);  // how soon a halt is seen by who waits for its turn

Clock::time_point deadline_in(double timeout_s) {
    const double bounded = std::clamp(timeout_s, 0.0, forever_s);
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(bounded));
}

int await(int socket, short events, Clock::time_point deadline) {
    for (;;) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
        if (left <= 0) {
            return ETIMEDOUT;
        }
        pollfd waiting{socket, events, 0};
        const int found = ::poll(&waiting, 1, static_cast<int>(left));
        if (found > 0) {
            return 0;  // also for an error: the next call says which
        }
        if (found < 0 && errno != EINTR) {
            return errno;
        }
    }
}

// Which of the rows are left: those from `row` on, the first of them from its changed start.
struct Rest {
    std::vector<iovec> rows;
    std::size_t row = 0;

    bool empty() const { return row == rows.size(); }

    void skip(std::size_t bytes) {
        while (row != rows.size() && bytes >= rows[row].iov_len) {
            bytes -= rows[row++].iov_len;
        }
        if (bytes != 0) {
            rows[row].iov_base = static_cast<char*>(rows[row].iov_base) + bytes;
            rows[row].iov_len -= bytes;
        }
    }

    // The first rows, `limit` bytes of them at most.
    std::vector<iovec> first(std::size_t limit) const {
        std::vector<iovec> some;
        for (std::size_t i = row; i != rows.size() && some.size() != parts && limit != 0; ++i) {
            some.push_back({rows[i].iov_base, std::min(rows[i].iov_len, limit)});
            limit -= some.back().iov_len;
        }
        return some;
    }
};

}  // namespace

std::uint32_t crc32c_rows(const std::vector<iovec>& rows, std::uint32_t init) {
    std::vector<Row> some;
    some.reserve(rows.size());
    for (const iovec& row : rows) {
        some.push_back({static_cast<const char*>(row.iov_base), row.iov_len});
    }
    if (wide(some)) {
        return ~update_wide_rows(~init, some);
    }
    for (const iovec& row : rows) {
        init = crc32c(row.iov_base, row.iov_len, init, "");
    }
    return init;
}

namespace {

int send_until(int socket, std::vector<iovec> rows, Clock::time_point deadline, int flags) {
    Rest rest{std::move(rows)};
    rest.skip(0);
    while (!rest.empty()) {
        std::vector<iovec> some = rest.first(SIZE_MAX);
        msghdr message{};
        message.msg_iov = some.data();
        message.msg_iovlen = some.size();
        const ssize_t gone = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT | flags);
        if (gone >= 0) {
            rest.skip(static_cast<std::size_t>(gone));
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (const int error = await(socket, POLLOUT, deadline); error != 0) {
                return error;
            }
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

// Through memory of ours.
int send_read(int socket, int file, off_t at, off_t end, Clock::time_point deadline) {
    std::vector<char> some(std::min<std::size_t>(piece, static_cast<std::size_t>(end - at)));
    while (at < end) {
        const std::size_t wanted = std::min<std::size_t>(some.size(), static_cast<std::size_t>(end - at));
        const ssize_t came = ::pread(file, some.data(), wanted, at);
        if (came == 0) {
            return end_of_stream;
        }
        if (came < 0 && errno != EINTR) {
            return errno;
        }
        if (came > 0) {
            const iovec read{some.data(), static_cast<std::size_t>(came)};
            if (const int error = send_until(socket, {read}, deadline, 0); error != 0) {
                return error;
            }
            at += came;
        }
    }
    return 0;
}

// Some file systems can be read, but not sent from (sendfile(2): EINVAL, ENOSYS; EOVERFLOW: not from there on).
bool must_be_read(int error) { return error == EINVAL || error == ENOSYS || error == EOVERFLOW; }

int send_file(int socket, const Body& body, Clock::time_point deadline) {
    auto at = static_cast<off_t>(body.at);
    const off_t end = at + static_cast<off_t>(body.length);
    while (at < end) {
        const ssize_t gone = ::sendfile(socket, body.file, &at, static_cast<std::size_t>(end - at));
        if (gone == 0) {
            return end_of_stream;
        }
        if (gone < 0 && must_be_read(errno)) {
            return send_read(socket, body.file, at, end, deadline);
        }
        if (gone < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (const int error = await(socket, POLLOUT, deadline); error != 0) {
                return error;
            }
        } else if (gone < 0 && errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

int send_frame(int socket, const Outgoing& frame, Clock::time_point deadline) {
    iovec header{const_cast<char*>(frame.header.data()), frame.header.size()};
    const Body& body = frame.body;
    if (body.file < 0) {
        return send_until(socket, {header, {reinterpret_cast<void*>(body.at), body.length}}, deadline, 0);
    }
    const int error = send_until(socket, {header}, deadline, body.length != 0 ? MSG_MORE : 0);
    return error != 0 ? error : send_file(socket, body, deadline);
}

// False: halted. A broken connection ends the wait too.
bool await_turn(int socket, Clock::time_point due, const Halt& halt) {
    for (;;) {
        if (halt.load(std::memory_order_acquire)) {
            return false;
        }
        const auto left = std::min<Clock::duration>(due - Clock::now(), look);
        if (left <= Clock::duration::zero()) {
            return true;
        }
        const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
        const timespec wait{0, ns};
        pollfd broken{socket, 0, 0};
        if (::ppoll(&broken, 1, &wait, nullptr) > 0) {
            return true;  // sending says what it is
        }
    }
}

}  // namespace

int send_rows(int socket, std::vector<iovec> rows, double timeout_s) {
    return send_until(socket, std::move(rows), deadline_in(timeout_s), 0);
}

Sent send_frames(int socket, const std::vector<Outgoing>& frames, Spacing spacing, const Halt& halt, double timeout_s) {
    const auto seconds = [](double s) {
        return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
    };
    const auto began = Clock::now() + seconds(std::clamp(spacing.delay_s, -forever_s, forever_s));
    double before = 0;
    Sent sent{0, 0};
    for (const Outgoing& frame : frames) {
        const auto due = spacing.rate > 0 ? began + seconds(std::min(before / spacing.rate, forever_s)) : began;
        if (!await_turn(socket, due, halt)) {
            break;
        }
        if (sent.error = send_frame(socket, frame, deadline_in(timeout_s)); sent.error != 0) {
            break;
        }
        before += static_cast<double>(frame.body.length);
        ++sent.frames;
    }
    return sent;
}

std::pair<int, std::uint32_t> receive_rows(int socket, std::vector<iovec> rows, double timeout_s, bool summed) {
    const auto deadline = deadline_in(timeout_s);
    std::uint32_t sum = 0;
    Rest rest{std::move(rows)};
    rest.skip(0);
    while (!rest.empty()) {
        std::vector<iovec> some = rest.first(summed ? piece : SIZE_MAX);
        msghdr message{};
        message.msg_iov = some.data();
        message.msg_iovlen = some.size();
        const ssize_t came = ::recvmsg(socket, &message, MSG_DONTWAIT);
        if (came == 0) {
            return {end_of_stream, sum};
        }
        if (came > 0) {
            auto left = static_cast<std::size_t>(came);
            for (iovec& row : some) {
                row.iov_len = std::min(row.iov_len, left);
                left -= row.iov_len;
            }
            sum = summed ? crc32c_rows(some, sum) : 0;
            rest.skip(static_cast<std::size_t>(came));
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (const int error = await(socket, POLLIN, deadline); error != 0) {
                return {error, sum};
            }
        } else if (errno != EINTR) {
            return {errno, sum};
        }
    }
    return {0, sum};
}

Frame receive_frame(int socket, std::string_view due, iovec body, double timeout_s) {
    Frame came{0, std::string(due.size(), '\0'), 0};
    const auto deadline = deadline_in(timeout_s);
    came.error = receive_rows(socket, {{came.header.data(), came.header.size()}}, timeout_s).first;
    if (came.error == 0 && came.header == due) {
        const double left = std::chrono::duration<double>(deadline - Clock::now()).count();
        std::tie(came.error, came.sum) = receive_rows(socket, {body}, left);
    }
    return came;
}

}  // namespace vnpu

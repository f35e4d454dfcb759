/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A plugin in C++: a device in a std::vector, and threads that reply from a
 * deadline queue.
 */
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <nbdkit-async.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC

namespace {

using Clock = std::chrono::steady_clock;

struct Request {
  Clock::time_point due;
  void *conn;
  std::uint64_t reqid;
};

struct Later {
  bool operator() (const Request &a, const Request &b) const
  {
    return a.due > b.due;
  }
};

/* The device copies bytes on arrival.  The reply comes at the deadline. */
class Device {
public:
  explicit Device (unsigned n_threads) : bytes (16 << 20)
  {
    for (unsigned i = 0; i < n_threads; i++)
      threads.emplace_back ([this] { serve (); });
  }

  ~Device ()
  {
    {
      const std::lock_guard guard (lock);
      is_ending = true;
    }
    changed.notify_all ();
    for (auto &t : threads)
      t.join ();
  }

  std::int64_t size () const
  {
    return static_cast<std::int64_t> (bytes.size ());
  }

  void read (void *buf, std::uint32_t count, std::uint64_t offset)
  {
    const std::lock_guard guard (data_lock);
    std::copy_n (bytes.data () + offset, count, static_cast<char *> (buf));
  }

  void write (const void *buf, std::uint32_t count, std::uint64_t offset)
  {
    const std::lock_guard guard (data_lock);
    std::copy_n (static_cast<const char *> (buf), count,
                 bytes.data () + offset);
  }

  void reply_later (void *conn, std::uint64_t reqid)
  {
    const std::lock_guard guard (lock);
    requests.push ({ Clock::now () + std::chrono::milliseconds (2), conn,
                     reqid });
    changed.notify_one ();
  }

private:
  void serve ()
  {
    std::unique_lock guard (lock);

    while (!is_ending || !requests.empty ()) {
      if (requests.empty ())
        changed.wait (guard);
      else if (const auto r = requests.top (); r.due > Clock::now ())
        changed.wait_until (guard, r.due);
      else {
        requests.pop ();
        guard.unlock ();
        nbdkit_async_reply (r.conn, r.reqid);
        guard.lock ();
      }
    }
  }

  std::vector<char> bytes;
  std::mutex lock, data_lock;
  std::condition_variable changed;
  std::priority_queue<Request, std::vector<Request>, Later> requests;
  bool is_ending = false;
  std::vector<std::thread> threads;
};

std::unique_ptr<Device> device;

int
cxx_after_fork ()
{
  device = std::make_unique<Device> (2);
  return 0;
}

/* No exception may leave a hook: nbdkit is C. */
template <typename Function>
int
guarded (Function function)
{
  try {
    function ();
    return 0;
  }
  catch (const std::exception &e) {
    nbdkit_error ("%s", e.what ());
    nbdkit_set_error (ENOMEM);
    return -1;
  }
}

int
cxx_pread (void *conn, std::uint64_t reqid, bool, void *, void *buf,
           std::uint32_t count, std::uint64_t offset)
{
  return guarded ([=] {
    device->read (buf, count, offset);
    device->reply_later (conn, reqid);
  });
}

int
cxx_pwrite (void *conn, std::uint64_t reqid, bool, void *, const void *buf,
            std::uint32_t count, std::uint64_t offset)
{
  return guarded ([=] {
    device->write (buf, count, offset);
    device->reply_later (conn, reqid);
  });
}

int
cxx_flush (void *conn, std::uint64_t reqid, void *, std::uint32_t)
{
  return guarded ([=] { device->reply_later (conn, reqid); });
}

nbdkit_plugin
make_plugin ()
{
  nbdkit_plugin p {};

  p.name = "cxx";
  p.after_fork = cxx_after_fork;
  p.unload = [] { device.reset (); };
  p.open = [] (int) -> void * { return NBDKIT_HANDLE_NOT_NEEDED; };
  p.get_size = [] (void *) -> std::int64_t { return device->size (); };
  return p;
}

nbdkit_async
make_hooks ()
{
  nbdkit_async h {};

  h.async_pread = cxx_pread;
  h.async_pwrite = cxx_pwrite;
  h.async_flush = cxx_flush;
  return h;
}

nbdkit_plugin plugin = make_plugin ();
nbdkit_async hooks = make_hooks ();

}

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)

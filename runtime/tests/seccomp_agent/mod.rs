//! The agent of seccomp filters that notify: this test's own thread, which answers all calls with one error number.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use oci_spec::runtime::ContainerProcessState;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// What the answer, ENOTNAM, reads as.
pub const ANSWER: &str = "XENIX";

/// One connection for each process: answers all its calls.
pub fn serve(agent: UnixListener, times: usize) -> JoinHandle<Vec<ContainerProcessState>> {
    std::thread::spawn(move || {
        let mut told = Vec::new();
        let mut answering = Vec::new();
        for _ in 0..times {
            let (connection, _) = agent.accept().expect("accepts");
            let (state, listener) = receive(connection);
            told.push(state);
            answering.push(std::thread::spawn(move || answer(&listener, libc::ENOTNAM)));
        }
        for thread in answering {
            thread.join().expect("answers");
        }
        told
    })
}

/// What the runtime sends on one connection.
fn receive(mut connection: UnixStream) -> (ContainerProcessState, OwnedFd) {
    let mut text = vec![0; 64 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        &connection,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("receives");
    text.truncate(message.bytes);
    let fd = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor");
    connection.read_to_end(&mut text).expect("reads to the end");
    (serde_json::from_slice(&text).expect("JSON"), fd)
}

/// Answers calls that notify with an error number, until the filter has no process any more. Before Linux 6.11 only
/// poll(2) tells that; receiving would wait for ever.
fn answer(listener: &OwnedFd, errno: i32) {
    let asked = || {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, None)).expect("polls");
        ready[0].revents().contains(PollFlags::IN)
    };
    while asked() {
        // Who asked may have been killed.
        let Ok(request) = ScmpNotifReq::receive(listener.as_raw_fd()) else {
            continue;
        };
        let response = ScmpNotifResp::new_error(request.id, -errno, ScmpNotifRespFlags::empty());
        // The process may be gone by now.
        response.respond(listener.as_raw_fd()).ok();
    }
}

//! The daemon's side: one thread waits for clients, one for each of them answers.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::place::{Directory, Listening};
use super::protocol::{self, Answer, Detached, LONGEST_QUESTION, MountId, Question, Unmount};
use crate::figures::Figures;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sys::mountinfo::DeviceNumber;
use crate::sys::process::leave_signals_to_others;
use crate::sys::wake::Wake;

/// How long a client may take to ask, and how long to take its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many are answered at once. One more is turned away and may come again.
const MOST_CLIENTS: usize = 8;
/// Enough for a path lookup and the figures.
const STACK: usize = 512 << 10;

/// What is behind the socket. Called from several threads at once; nothing here may wait for the mount or for SRC.
pub trait Answering: Send + Sync {
    /// How it is.
    fn figures(&self) -> Figures;

    /// Which mount it is.
    fn mount(&self) -> MountId;

    /// Takes the mount away.
    ///
    /// # Errors
    /// Why not, in a line.
    fn detach(&self, lazily: bool) -> Result<Detached, String>;

    /// Takes it away and cuts off whoever uses it: begins with that.
    fn cut_off(&self);

    /// Has the program on the disk go on, which ends this process: why it did not come to that, in a line.
    fn upgrade(&self) -> String;
}

/// The socket and its thread. Dropping this takes both away.
#[derive(Debug)]
pub struct Server {
    over: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Server {
    /// Listens for questions about the mount with `device`.
    pub fn start(device: DeviceNumber, behind: Arc<dyn Answering>) -> io::Result<Self> {
        let backlog = i32::try_from(MOST_CLIENTS).unwrap_or(i32::MAX);
        let listening = Directory::own()?.listen(device, backlog)?;
        let path = listening.path();
        let over = Arc::new(Wake::new()?);
        let ended = Arc::clone(&over);
        let thread = thread::Builder::new()
            .name("loopfs-socket".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // What it is told to do must not be cut short by a signal that is for the control thread.
                let _ = leave_signals_to_others();
                serve(&listening, &ended, &behind);
            })?;
        Ok(Self {
            over,
            thread: Some(thread),
            path,
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.ring();
        if let Some(thread) = self.thread.take() {
            // It waits for nobody. A client that is being answered has a thread of its own.
            let _ = thread.join();
        }
    }
}

fn serve(listening: &Listening, over: &Wake, behind: &Arc<dyn Answering>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listening.fd(), PollFlags::IN),
            PollFd::new(over, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return log::warn!("no longer listening for questions: {errno}"),
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(listening.fd(), flags) {
            Ok(client) => receive(client, &clients, behind),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => {
                // No descriptor is free, most likely: it would be told again and again at once.
                log::debug!("can't take up a question: {errno}");
                let pause = Timespec::try_from(PATIENCE / 4).ok();
                let mut end = [PollFd::new(over, PollFlags::IN)];
                let _ = poll(&mut end, pause.as_ref());
            }
        }
    }
}

/// One client among those who are being answered.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(clients));
        (clients.fetch_add(1, Ordering::Relaxed) < MOST_CLIENTS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn receive(client: OwnedFd, clients: &Arc<AtomicUsize>, behind: &Arc<dyn Answering>) {
    if !may_ask(&client) {
        return;
    }
    let Some(place) = Place::take(clients) else {
        return; // one that ends without an answer is asked again
    };
    let behind = Arc::clone(behind);
    let answering = thread::Builder::new()
        .name("loopfs-answer".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let _place = place;
            if let Err(errno) = answer(&client, &*behind) {
                log::debug!("a question could not be answered: {errno}");
            }
        });
    if let Err(error) = answering {
        log::debug!("no thread for a question: {error}");
    }
}

/// Root and ourselves may. The mode of the socket says the same; this does not depend on how the file system of it
/// checks.
fn may_ask(client: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_peercred(client)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn answer(client: &OwnedFd, behind: &dyn Answering) -> rustix::io::Result<()> {
    let answer = match protocol::question(&line(client)?) {
        Ok(question) => answer_to(question, behind),
        Err(why) => Answer::Refused(why),
    };
    send(client, &protocol::written(&answer))
}

fn answer_to(question: Question, behind: &dyn Answering) -> Answer {
    match question {
        Question::Figures => Answer::Figures(Box::new(behind.figures())),
        Question::Unmount { mount, .. } | Question::Upgrade { mount }
            if !mount.is(behind.mount()) =>
        {
            Answer::AnotherMount
        }
        Question::Unmount { how, .. } => {
            let lazily = match how {
                Unmount::Politely => false,
                Unmount::Lazily => true,
                Unmount::ByForce => {
                    behind.cut_off();
                    return Answer::CuttingOff;
                }
            };
            match behind.detach(lazily) {
                Ok(detached) => Answer::Detached(detached),
                Err(why) => Answer::Refused(why),
            }
        }
        Question::Upgrade { .. } => Answer::Refused(behind.upgrade()),
    }
}

/// A line, or what came in place of one: too much, or an early end.
fn line(client: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let end = Instant::now() + PATIENCE;
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < LONGEST_QUESTION {
        ready(client, PollFlags::IN, end)?;
        let mut part = [0; LONGEST_QUESTION];
        match rustix::net::recv(client, &mut part, RecvFlags::empty()) {
            Ok((_, 0)) => break,
            Ok((_, length)) => line.extend_from_slice(&part[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(line)
}

fn send(client: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        ready(client, PollFlags::OUT, end)?;
        match rustix::net::send(client, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Waits until `client` can be read or written; `ETIMEDOUT` at `end`.
fn ready(client: &OwnedFd, what: PollFlags, end: Instant) -> rustix::io::Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(client, what)];
    match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
        Ok(0) => Err(Errno::TIMEDOUT),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    struct Test;

    impl Answering for Test {
        fn figures(&self) -> Figures {
            Figures {
                pid: 7,
                ..Figures::default()
            }
        }

        fn mount(&self) -> MountId {
            MountId {
                recycled: 5,
                unique: Some(77),
            }
        }

        fn detach(&self, lazily: bool) -> Result<Detached, String> {
            if lazily {
                Err("not now".into())
            } else {
                Ok(Detached::Busy)
            }
        }

        fn cut_off(&self) {}

        fn upgrade(&self) -> String {
            "nobody goes on".to_owned()
        }
    }

    /// What is answered to `bytes`, after which the client says no more.
    fn answered(bytes: &[u8]) -> String {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let server = OwnedFd::from(server);
        thread::scope(|scope| {
            scope.spawn(move || answer(&server, &Test));
            // It may have stopped listening half way.
            let _ = client.write_all(bytes);
            let _ = client.shutdown(std::net::Shutdown::Write);
            let mut text = String::new();
            let _ = client.read_to_string(&mut text);
            text
        })
    }

    #[test]
    fn a_question_is_answered_with_a_line() {
        assert!(answered(b"{\"ask\":\"figures\"}\n").contains(r#""pid":7"#));
        let ours = r#""mount":{"recycled":5,"unique":77}"#;
        let busy = "{\"detached\":\"busy\"}\n";
        assert_eq!(unmount("politely", ours), busy);
        let refused = "{\"refused\":\"not now\"}\n";
        assert_eq!(unmount("lazily", ours), refused);
        let upgrade = format!("{{\"ask\":\"upgrade\",{ours}}}\n");
        let refused = "{\"refused\":\"nobody goes on\"}\n";
        assert_eq!(answered(upgrade.as_bytes()), refused);
    }

    fn unmount(how: &str, mount: &str) -> String {
        answered(format!("{{\"ask\":\"unmount\",{mount},\"how\":\"{how}\"}}\n").as_bytes())
    }

    /// Its device number, and its id in the mount table, are another mount's by now.
    #[test]
    fn what_is_asked_of_another_mount_is_not_done() {
        let other = r#""mount":{"recycled":5,"unique":78}"#;
        let another = "\"another_mount\"\n";
        for how in ["politely", "lazily", "by_force"] {
            assert_eq!(unmount(how, other), another);
        }
        let upgrade = format!("{{\"ask\":\"upgrade\",{other}}}\n");
        assert_eq!(answered(upgrade.as_bytes()), another);
        // Whoever does not say which one may mean any, as commands of the time before there were such ids did.
        for question in [
            "{\"ask\":\"detach\",\"lazily\":true}\n",
            "{\"ask\":\"cut_off\"}\n",
            "{\"ask\":\"upgrade\"}\n",
            "{\"ask\":\"unmount\",\"how\":\"lazily\"}\n",
        ] {
            let answer = answered(question.as_bytes());
            assert!(answer.starts_with("{\"refused\":"), "{question}: {answer}");
        }
    }

    #[test]
    fn garbage_too_much_and_too_little_are_refused() {
        for bytes in [
            b"".as_slice(),
            b"GET / HTTP/1.1\r\n\r\n",
            b"{\"ask\":\"figures\"",
            &[0xff; 100],
        ] {
            assert!(answered(bytes).starts_with("{\"refused\":"), "{bytes:?}");
        }
        // Not read to its end, so that the answer may be lost with the connection.
        let answer = answered(&vec![b'x'; 100 * LONGEST_QUESTION]);
        assert!(
            answer.is_empty() || answer.starts_with("{\"refused\":"),
            "{answer}"
        );
    }

    #[test]
    fn a_question_in_parts_is_put_together() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let server = OwnedFd::from(server);
        thread::scope(|scope| {
            let answering = scope.spawn(move || answer(&server, &Test));
            let question =
                br#"{"ask":"unmount","mount":{"recycled":5,"unique":77},"how":"by_force"}"#;
            for byte in question.iter().chain(b"\n") {
                client.write_all(&[*byte]).unwrap();
            }
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "\"cutting_off\"\n");
            answering.join().unwrap().unwrap();
        });
    }

    #[test]
    fn who_says_nothing_is_not_waited_for() {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let begin = Instant::now();
        let result = answer(&OwnedFd::from(server), &Test);
        assert_eq!(result, Err(Errno::TIMEDOUT));
        assert!(begin.elapsed() < PATIENCE * 3);
        drop(client);
    }

    #[test]
    fn one_client_too_many_is_turned_away() {
        let clients = Arc::new(AtomicUsize::new(0));
        let places: Vec<_> = (0..MOST_CLIENTS)
            .filter_map(|_| Place::take(&clients))
            .collect();
        assert_eq!(places.len(), MOST_CLIENTS);
        assert!(Place::take(&clients).is_none());
        drop(places);
        assert!(Place::take(&clients).is_some());
    }
}

//! A server that does what a test wants: wrong, late, half.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The head of a request, and access to its body.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Start of the range that is asked for.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok()
    }

    /// Announced length of the body.
    pub(crate) fn content_length(&self) -> usize {
        self.header("content-length").map_or(0, |text| text.parse().unwrap())
    }

    /// At most `limit` bytes of the body; fewer if the client goes away.
    pub(crate) fn body(&mut self, limit: usize) -> Vec<u8> {
        let mut body = Vec::new();
        let len = self.content_length().min(limit) as u64;
        (&mut self.stream).take(len).read_to_end(&mut body).ok();
        body
    }
}

/// What the server answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Announced in place of the true length.
    length: Option<usize>,
    /// Bytes of the body after which the connection is cut.
    cut: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), length: None, cut: None }
    }

    /// Hangs up without a word.
    pub(crate) fn hang_up() -> Self {
        Self { cut: Some(0), ..Self::new(0) }
    }

    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(crate) fn length(mut self, length: usize) -> Self {
        self.length = Some(length);
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }
}

/// Runs for the length of a test.
pub(crate) struct FaultServer {
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FaultServer {
    /// Answers each request by `answer`, which is also told how many there were before. A request for `/v2/` itself
    /// comes first from every client; it is answered with 200 unless `answer` has something else.
    pub(crate) fn start(answer: impl Fn(&mut Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let answer = Arc::new(answer);
        let thread = std::thread::spawn({
            let (log, stop) = (log.clone(), stop.clone());
            move || {
                let mut connections = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (answer, log) = (answer.clone(), log.clone());
                    connections.push(std::thread::spawn(move || serve(stream.unwrap(), &*answer, &log)));
                }
                for connection in connections {
                    connection.join().unwrap();
                }
            }
        });
        Self { address, log, stop, thread: Some(thread) }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far: method and target, those for `/v2/` left out.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).ok();
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.expect("the server failed a check");
        }
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&mut Request) -> Option<Reply>, log: &Mutex<Vec<String>>) {
    let mut output = stream.try_clone().unwrap();
    let mut stream = BufReader::new(stream);
    // A client that tries TLS first sends no text.
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        match stream.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.trim_ascii().is_empty() => break,
            Ok(_) => match String::from_utf8(line) {
                Ok(line) if lines.is_empty() && !line.contains("HTTP/1.1") => return,
                Ok(line) => lines.push(line.trim().to_owned()),
                Err(_) => return,
            },
        }
    }
    let Some(first) = lines.first() else { return };
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if target != "/v2/" {
        log.lock().unwrap().push(format!("{method} {target}"));
    }
    let head_only = method == "HEAD";
    let is_ping = target == "/v2/";
    let mut request = Request { method, target, headers, stream };
    let reply = answer(&mut request).unwrap_or_else(|| Reply::new(if is_ping { 200 } else { 404 }));
    if reply.status == 0 {
        return;
    }
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if reply.status != 204 {
        head.push_str(&format!("Content-Length: {}\r\n", reply.length.unwrap_or(reply.body.len())));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    // The client may have gone: that is its right.
    output.write_all(head.as_bytes()).ok();
    if !head_only {
        output.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())]).ok();
    }
}

//! A web server for the files of a folder, on an origin of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

/// Starts one that lasts as long as the tests; its origin.
pub(crate) fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let origin = format!("http://{}", listener.local_addr().expect("bound"));
    let folder = folder.to_owned();
    thread::spawn(move || {
        for browser in listener.incoming().map_while(Result::ok) {
            let folder = folder.clone();
            // A browser may open connections that it never uses.
            thread::spawn(move || answer(&browser, &folder));
        }
    });
    origin
}

fn answer(mut browser: &TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut lines = BufReader::new(browser);
    while lines.read_until(b'\n', &mut head)? > 2 {}
    let head = String::from_utf8_lossy(&head);
    let name = head.split_whitespace().nth(1).unwrap_or_default().trim_start_matches('/');
    let name = if name.is_empty() { "index.html" } else { name };
    let kind = match name.rsplit_once('.') {
        Some((_, "js")) => "text/javascript",
        Some((_, "css")) => "text/css",
        _ => "text/html",
    };
    let found = fs::read(PathBuf::from(folder).join(name));
    let status = if found.is_ok() { "200 OK" } else { "404 Not Found" };
    let body = found.unwrap_or_default();
    let length = body.len();
    write!(
        browser,
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )?;
    browser.write_all(&body)
}

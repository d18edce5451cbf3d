//! `top`: the figures of a running proxy in a terminal, and the terminal as it was afterwards.

use std::net::TcpListener;

use crate::harness::{Proxy, eventually, pair};
use crate::pty::Terminal;
use crate::signals::command;

const SIZE: (u16, u16) = (40, 120);

fn top(proxy: &Proxy, variables: &[(&str, &str)], size: (u16, u16)) -> Terminal {
    Terminal::start(&["top", "--admin", &proxy.admin.to_string()], variables, size)
}

async fn shows(terminal: &Terminal, what: &str, condition: impl Fn(&str) -> bool) {
    eventually(what, || condition(&terminal.text())).await;
}

#[tokio::test]
async fn figures_follow_traffic_and_q_gives_the_terminal_back() {
    let (_mock, proxy) = pair("environments = [{ kind = 'development' }]").await;
    let mut terminal = top(&proxy, &[], SIZE);
    shows(&terminal, "the whole budget", |text| text.contains("100 left of 100 per 10 min  ✓ open")).await;
    assert!(terminal.text().contains("✓ All is well"), "{}", terminal.text());
    assert!(!terminal.is_restored(), "the screen is taken");
    for item in 0..95 {
        assert_eq!(proxy.get(&format!("/providers/{item}")).await.status, 404);
    }
    assert_eq!(proxy.get("/sessions").await.status, 403);
    shows(&terminal, "what is left", |text| {
        text.contains("▲ main: 5 of 100 requests left")
            && text.contains("5 left of 100 per 10 min  ▲ low")
            && text.contains("404 ×95")
            && text.contains("authorize 403 ×1")
    })
    .await;
    terminal.press(b"q");
    assert_eq!(terminal.end(), Some(0));
    assert!(terminal.is_restored());
}

#[tokio::test]
async fn escape_control_c_and_a_signal_give_it_back_too() {
    let (_mock, proxy) = pair("").await;
    for leave in ["\u{1b}", "\u{3}", "TERM", "HUP"] {
        let mut terminal = top(&proxy, &[], SIZE);
        shows(&terminal, "the figures", |text| text.contains("q quits")).await;
        match leave.len() {
            1 => terminal.press(leave.as_bytes()),
            _ => terminal.signal(leave),
        }
        assert_eq!(terminal.end(), Some(0), "{leave:?}");
        assert!(terminal.is_restored(), "{leave:?}");
    }
}

#[tokio::test]
async fn a_small_terminal_shows_what_matters_most_and_a_larger_one_more() {
    let (_mock, proxy) = pair("").await;
    let mut terminal = top(&proxy, &[], (5, 30));
    shows(&terminal, "the budget", |text| text.contains("main    5,000 left of 5,000")).await;
    assert!(!terminal.text().contains("config"));
    terminal.resize((2, 3));
    terminal.resize(SIZE);
    shows(&terminal, "all of it", |text| text.contains("config    ✓ in force") && text.contains("memory ✓"))
        .await;
    terminal.press(b"q");
    assert_eq!(terminal.end(), Some(0));
}

#[tokio::test]
async fn there_are_colours_unless_no_color_says_otherwise() {
    let (_mock, proxy) = pair("").await;
    let bytes = async |variables: &[(&str, &str)]| {
        let mut terminal = top(&proxy, variables, SIZE);
        shows(&terminal, "the figures", |text| text.contains("✓ in force")).await;
        terminal.press(b"q");
        assert_eq!(terminal.end(), Some(0));
        String::from_utf8_lossy(&terminal.bytes()).into_owned()
    };
    let coloured = |bytes: &str| bytes.contains("38;5;2;") || bytes.contains("38;5;2m");
    assert!(coloured(&bytes(&[]).await));
    let plain = bytes(&[("NO_COLOR", "1")]).await;
    assert!(!coloured(&plain) && !plain.contains("38;5;"), "{plain:?}");
}

#[tokio::test]
async fn it_waits_for_a_proxy_that_restarts() {
    let (mock, proxy) = pair("").await;
    let admin = proxy.admin;
    let mut terminal = top(&proxy, &[], SIZE);
    shows(&terminal, "the figures", |text| text.contains("● live")).await;
    let server = proxy.into_server();
    server.drain(std::time::Duration::ZERO, std::time::Duration::ZERO, async {}).await;
    shows(&terminal, "that it is gone", |text| text.contains("trying again: can't connect")).await;
    assert!(terminal.text().contains("5,000 left of 5,000"), "the last figures stay: {}", terminal.text());
    let _proxy = Proxy::start(mock.url(), &format!("server.admin = '{admin}'"));
    shows(&terminal, "that it is back", |text| text.contains("● live")).await;
    terminal.press(b"q");
    assert_eq!(terminal.end(), Some(0));
}

#[tokio::test]
async fn without_a_terminal_it_prints_them_once() {
    let (_mock, proxy) = pair("").await;
    let admin = proxy.admin.to_string();
    let (code, output) = tokio::task::spawn_blocking(move || command(&["top", "--admin", &admin], &[]))
        .await
        .expect("no panic");
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("✓ All is well\n") && output.contains("5,000 left of 5,000"), "{output}");
    assert!(!output.contains('\u{1b}') && !output.contains("q quits"), "{output:?}");
}

#[tokio::test]
async fn a_port_that_refuses_or_is_not_there_is_an_error_in_words() {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let (code, output) = command(&["top", "--admin", &nobody.to_string()], &[]);
    assert_eq!(code, Some(1));
    assert!(output.contains(&format!("metorial-proxy: can't connect to {nobody}: ")), "{output}");

    let (code, output) = command(&["top", "--token-file", "/nonexistent"], &[]);
    assert!(code == Some(2) && output.contains("--token-file: /nonexistent cannot be read"), "{output}");

    // Whatever answers there may say anything, but not to the terminal.
    let body = r#"{"error":"\u001b]0;owned\u0007"}"#;
    let evil = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (url, _) = crate::harness::scripted(move |_| evil.clone().into_bytes()).await;
    let addr = url.trim_start_matches("http://").to_owned();
    let (code, output) = tokio::task::spawn_blocking(move || command(&["top", "--admin", &addr], &[]))
        .await
        .expect("no panic");
    assert!(code == Some(1) && output.contains("answered 403: \u{fffd}]0;owned\u{fffd}"), "{output:?}");
}

//! `baton top`: a live view in the terminal. Two threads listen to the agent, this one draws.

mod draw;
#[cfg(test)]
mod tests;
mod view;

use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::CliError;
use super::status::PATIENCE;
use crate::control::{EventsRequest, Request, StatusRequest, ask};
use crate::journal::Record;
use crate::telemetry::Status;
use view::{EVENTS_KEPT, News, View};

/// Longest time between two looks for news.
const TICK: Duration = Duration::from_millis(100);
/// Time between two attempts to reach an agent that has gone.
const RETRY: Duration = Duration::from_secs(1);

pub(super) fn command(socket: &Path) -> Result<(), CliError> {
    if !stdout().is_terminal() {
        return Err(CliError::Other("`top` needs a terminal; use `baton status --watch`".to_owned()));
    }
    // Before the screen is taken: an agent that isn't there is one plain line.
    ask(socket, &Request::Status(StatusRequest::default()))?;
    let (sender, news) = channel();
    listen(socket, &sender, |socket, sender| {
        for line in watch(socket, Request::Status(StatusRequest { watch: true }), Some(PATIENCE))? {
            let status: Status = serde_json::from_str(&line?)?;
            if sender.send(News::Status(Box::new(status))).is_err() {
                break;
            }
        }
        Ok(())
    });
    listen(socket, &sender, |socket, sender| {
        let request = EventsRequest { follow: true, limit: Some(EVENTS_KEPT), ..EventsRequest::default() };
        let mut first = true;
        for line in watch(socket, Request::Events(request), None)? {
            let record: Record = serde_json::from_str(&line?)?;
            if sender.send(News::Event { record: Box::new(record), first }).is_err() {
                break;
            }
            first = false;
        }
        Ok(())
    });
    // It puts the terminal back on a panic as well.
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, &news);
    ratatui::restore();
    result
}

fn watch(
    socket: &Path,
    request: Request,
    limit: Option<Duration>,
) -> Result<impl Iterator<Item = Result<String, crate::control::ClientError>>, CliError> {
    let answers = ask(socket, &request)?;
    answers.limit(limit)?;
    Ok(answers)
}

/// Runs `hear` in a thread, again and again: it returns when the agent has gone. Ends with the process.
fn listen(
    socket: &Path,
    sender: &Sender<News>,
    hear: impl Fn(&Path, &Sender<News>) -> Result<(), CliError> + Send + 'static,
) {
    let (socket, sender): (PathBuf, Sender<News>) = (socket.to_owned(), sender.clone());
    std::thread::spawn(move || {
        loop {
            let why = match hear(&socket, &sender) {
                Ok(()) => "the agent has gone".to_owned(),
                Err(error) => error.to_string(),
            };
            if sender.send(News::Lost(why)).is_err() {
                return;
            }
            std::thread::sleep(RETRY);
        }
    });
}

fn show(terminal: &mut DefaultTerminal, news: &Receiver<News>) -> Result<(), CliError> {
    let start = Instant::now();
    let mut view = View::default();
    loop {
        while let Ok(item) = news.try_recv() {
            view.hear(item, start.elapsed());
        }
        view.now = start.elapsed();
        terminal.draw(|frame| draw::draw(frame, &view))?;
        if event::poll(TICK)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    if quits(key) {
                        return Ok(());
                    }
                    scroll(key, &mut view);
                }
                // A new size takes effect with the next drawing.
                _ => {}
            }
        }
    }
}

fn quits(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || (control && key.code == KeyCode::Char('c'))
}

fn scroll(key: KeyEvent, view: &mut View) {
    match key.code {
        KeyCode::Down | KeyCode::Char('j') => view.scroll(1),
        KeyCode::Up | KeyCode::Char('k') => view.scroll(-1),
        KeyCode::PageDown => view.scroll(10),
        KeyCode::PageUp => view.scroll(-10),
        KeyCode::Home => view.scroll(isize::MIN),
        _ => {}
    }
}

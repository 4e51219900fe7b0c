//! keepalived's syntax: a statement is a line of words, and may have a block of statements in braces.

use super::Place;

/// Blocks inside blocks that are followed; keepalived itself needs four.
const DEPTH: usize = 32;

/// A statement.
#[derive(Debug, Default)]
pub(super) struct Statement {
    pub(super) place: Place,
    pub(super) words: Vec<String>,
    /// What is in its braces.
    pub(super) block: Vec<Statement>,
}

impl Statement {
    /// Its first word; empty if it has none.
    pub(super) fn keyword(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The word after the first one; empty if it has none.
    pub(super) fn argument(&self) -> &str {
        self.words.get(1).map_or("", String::as_str)
    }
}

/// Something that is wrong with the syntax, and its line.
pub(super) type Mistake = (usize, &'static str);

/// Reads the statements of a file.
pub(super) fn parse(text: &str, file: Option<&str>) -> (Vec<Statement>, Vec<Mistake>) {
    let place = |line: usize| Place { file: file.map(str::to_owned), line };
    let mut mistakes = Vec::new();
    // What is open: the statements so far of each block, the outermost first.
    let mut open: Vec<Vec<Statement>> = vec![Vec::new()];
    // Blocks that are nested too deep to be followed.
    let mut beyond = 0;
    let push = |open: &mut Vec<Vec<Statement>>, statement: Statement| {
        if let Some(block) = open.last_mut() {
            block.push(statement);
        }
    };
    for (number, line) in (1..).zip(text.lines()) {
        let mut now = Statement { place: place(number), ..Statement::default() };
        for token in tokens(line) {
            match token {
                Token::Word(word) if beyond == 0 => now.words.push(word),
                Token::Word(_) => {}
                Token::Open if beyond > 0 || open.len() > DEPTH => {
                    if beyond == 0 {
                        mistakes.push((number, "blocks are nested too deep: this one is left out"));
                    }
                    beyond += 1;
                }
                Token::Open => {
                    // A brace on a line of its own belongs to the statement before.
                    if !now.words.is_empty() {
                        let next = Statement { place: place(number), ..Statement::default() };
                        push(&mut open, std::mem::replace(&mut now, next));
                    } else if open.last().is_none_or(Vec::is_empty) {
                        mistakes.push((number, "a block without a name"));
                        push(&mut open, Statement { place: place(number), ..Statement::default() });
                    }
                    open.push(Vec::new());
                }
                Token::Close if beyond > 0 => beyond -= 1,
                Token::Close => {
                    if !now.words.is_empty() {
                        let next = Statement { place: place(number), ..Statement::default() };
                        push(&mut open, std::mem::replace(&mut now, next));
                    }
                    match close(&mut open) {
                        true => {}
                        false => mistakes.push((number, "a closing brace too many")),
                    }
                }
            }
        }
        if !now.words.is_empty() {
            push(&mut open, now);
        }
    }
    if open.len() > 1 || beyond > 0 {
        mistakes.push((text.lines().count(), "a closing brace is missing"));
    }
    while close(&mut open) {}
    (open.pop().unwrap_or_default(), mistakes)
}

/// Hands the innermost block to its statement. False: there is none open.
fn close(open: &mut Vec<Vec<Statement>>) -> bool {
    if open.len() < 2 {
        return false;
    }
    let block = open.pop().unwrap_or_default();
    if let Some(owner) = open.last_mut().and_then(|outer| outer.last_mut()) {
        owner.block.extend(block);
    }
    true
}

enum Token {
    Word(String),
    Open,
    Close,
}

/// The tokens of a line, without its comment.
fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    let mut is_word = false;
    let mut quote = None;
    let finish = |word: &mut String, is_word: &mut bool, tokens: &mut Vec<Token>| {
        if std::mem::take(is_word) {
            tokens.push(Token::Word(std::mem::take(word)));
        }
    };
    for c in line.chars() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some(_), c) => word.push(c),
            (None, '"' | '\'') => (quote, is_word) = (Some(c), true),
            (None, '#' | '!') => break,
            (None, '{' | '}') => {
                finish(&mut word, &mut is_word, &mut tokens);
                tokens.push(if c == '{' { Token::Open } else { Token::Close });
            }
            (None, c) if c.is_whitespace() => finish(&mut word, &mut is_word, &mut tokens),
            (None, c) => {
                word.push(c);
                is_word = true;
            }
        }
    }
    finish(&mut word, &mut is_word, &mut tokens);
    tokens
}

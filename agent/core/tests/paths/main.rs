//! Verdicts from the path table: the table of cases in `machine::paths`, and what holds for every story.

mod guards;
mod loss;
mod model;
mod properties;
mod table;

"""What a report of a prediction model has to cover: the items of TRIPOD+AI.

Collins and others, TRIPOD+AI statement, BMJ 385:e078378 (2024): 27 items in 52 parts. The numbers are those of the statement,
the topics are in our own words.
"""

from __future__ import annotations

from typing import NamedTuple


class Item(NamedTuple):
    """A part of the statement: its number, the chapter of an article that it belongs to, and what it asks for."""

    number: str
    chapter: str
    topic: str


ITEMS = tuple(
    Item(*item)
    for item in (
        ("1", "Title", "development or evaluation, target population, outcome"),
        ("2", "Abstract", "structured summary (TRIPOD+AI for Abstracts)"),
        ("3a", "Introduction", "clinical context, reason for the model, models there are"),
        ("3b", "Introduction", "target population, place in care, intended users"),
        ("3c", "Introduction", "known inequalities between groups"),
        ("4", "Introduction", "objectives: development, evaluation, or both"),
        ("5a", "Methods", "sources of the data, why these, how representative"),
        ("5b", "Methods", "dates of recruitment and follow-up"),
        ("6a", "Methods", "setting, number and place of centres"),
        ("6b", "Methods", "who was eligible"),
        ("6c", "Methods", "treatments and how they were handled"),
        ("7", "Methods", "preparation and quality checks of the data"),
        ("8a", "Methods", "outcome, time horizon, how and when it was assessed"),
        ("8b", "Methods", "who assessed the outcome, where it takes judgement"),
        ("8c", "Methods", "blinding of the outcome to the predictors"),
        ("9a", "Methods", "choice of the predictors"),
        ("9b", "Methods", "definition of the predictors, how and when measured"),
        ("9c", "Methods", "who assessed the predictors, where it takes judgement"),
        ("10", "Methods", "how the sample size was arrived at"),
        ("11", "Methods", "missing data"),
        ("12a", "Methods", "how data were split for development and evaluation"),
        ("12b", "Methods", "how predictors entered the model"),
        ("12c", "Methods", "type of model, building steps, tuning, internal validation"),
        ("12d", "Methods", "differences between clusters such as hospitals"),
        ("12e", "Methods", "measures of performance, and why"),
        ("12f", "Methods", "updating of the model, such as recalibration"),
        ("12g", "Methods", "how predictions were computed in the evaluation"),
        ("13", "Methods", "class imbalance"),
        ("14", "Methods", "fairness"),
        ("15", "Methods", "output of the model, thresholds and how they were set"),
        ("16", "Methods", "differences between development and evaluation data"),
        ("17", "Methods", "ethical approval and consent"),
        ("18a", "Open science", "funding"),
        ("18b", "Open science", "conflicts of interest"),
        ("18c", "Open science", "protocol"),
        ("18d", "Open science", "registration"),
        ("18e", "Open science", "availability of the data"),
        ("18f", "Open science", "availability of the code"),
        ("19", "Patient involvement", "patients and public in design, conduct, reporting"),
        ("20a", "Results", "flow of participants, with and without the outcome"),
        ("20b", "Results", "characteristics of the participants, missing data"),
        ("20c", "Results", "evaluation data compared with development data"),
        ("21", "Results", "participants and events in each analysis"),
        ("22", "Results", "the full model, or how to have it"),
        ("23a", "Results", "performance with intervals, also of key subgroups"),
        ("23b", "Results", "differences of performance between clusters"),
        ("24", "Results", "results of updating the model"),
        ("25", "Discussion", "overall interpretation, fairness, earlier studies"),
        ("26", "Discussion", "limitations"),
        ("27a", "Discussion", "input of poor quality or missing, in use"),
        ("27b", "Discussion", "what users have to do and to know"),
        ("27c", "Discussion", "next steps of research"),
    )
)

"""Eight worked examples written for this project, in the format of the word problems.

CoT-Influx (arXiv 2312.08901) appends hand-written examples to what its pruner keeps, and a fixed few-shot prompt is
the usual baseline (Wei et al., arXiv 2201.11903). Both use wordings of their own; these are ours, eight problems of
different kinds: adding and taking away, money, rounding up, percentages, rates, fractions, an unknown, and a perimeter.
"""

from __future__ import annotations

from rcp.data.sources import Problem

_TEXTS = (
    (
        "A bus leaves the depot with 14 passengers. At the market 9 people get on and 5 get off, and at the library 6 "
        "more get on. How many passengers are on the bus after the library?",
        "The bus starts with 14 passengers. After the market there are 14 + 9 - 5 = 18. At the library 6 more get on, "
        "which makes 18 + 6 = 24.",
        "24",
    ),
    (
        "A cafe sells tea at $3 a cup and muffins at $2.50 apiece. For his office Mr. Ito orders 4 cups and 6 muffins, "
        "and hands over $30. How many dollars does he get back?",
        "The tea costs 4 * 3 = 12 dollars and the muffins 6 * 2.50 = 15 dollars. Together that is 12 + 15 = 27 "
        "dollars. Of the 30 dollars he gets 30 - 27 = 3 back.",
        "3",
    ),
    (
        "A school drives 130 children to the zoo in vans. Each van has seats for 12 children. How many vans does the "
        "school need?",
        "Ten vans seat 10 * 12 = 120 children, so 130 - 120 = 10 children are still without a seat. They need one more "
        "van, which will not be full. That makes 10 + 1 = 11 vans.",
        "11",
    ),
    (
        "The price of a $60 jacket falls by 25% in the winter sale. Members of the store get another $5 off the sale "
        "price. How many dollars does a member pay for the jacket?",
        "A quarter of 60 is 60 * 0.25 = 15 dollars, so the sale price is 60 - 15 = 45 dollars. A member pays 5 dollars "
        "less than that, which is 45 - 5 = 40 dollars.",
        "40",
    ),
    (
        "An old printer makes 12 pages a minute and a new one makes 18. Both start at the same time on a job of 240 "
        "pages. After how many minutes is the job done?",
        "In one minute the two printers make 12 + 18 = 30 pages together. For 240 pages they therefore need "
        "240 / 30 = 8 minutes.",
        "8",
    ),
    (
        "A farmer picks 96 apples. She sells three quarters of them at the market and gives half of the rest to a "
        "neighbor. How many apples does she keep?",
        "One quarter of the apples is 96 / 4 = 24, so she sells 3 * 24 = 72 of them. The rest is 96 - 72 = 24 apples. "
        "Half of it goes to the neighbor, and she keeps 24 / 2 = 12.",
        "12",
    ),
    (
        "Omar is four times as old as his niece. In 6 years their ages will add up to 62. How old is the niece now?",
        "In 6 years both of them will be 6 years older, so today their ages add up to 62 - 2 * 6 = 50. If the niece is "
        "one part of that, Omar is four parts, which makes 5 parts. One part is 50 / 5 = 10 years.",
        "10",
    ),
    (
        "A rectangular garden is 15 meters long and 8 meters wide. It gets a fence at $7 a meter, except for a gate of "
        "2 meters that costs $40. What is the total cost in dollars?",
        "The way around is 2 * (15 + 8) = 46 meters. Without the gate 46 - 2 = 44 meters of fence cost "
        "44 * 7 = 308 dollars. With it that is 308 + 40 = 348 dollars.",
        "348",
    ),
)

HANDWRITTEN = tuple(
    Problem(question, f"{solution} The answer is {answer}.", answer, f"handwritten:{number}")
    for number, (question, solution, answer) in enumerate(_TEXTS, 1)
)

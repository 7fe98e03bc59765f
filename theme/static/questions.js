// The questions at the end of a chapter work without this script: each answer unfolds and says why. The script adds the score:
// how many questions were right at the first try.
document.addEventListener("DOMContentLoaded", () => {
  const section = document.getElementById("questions");
  if (!section) return;
  const questions = [];                                       // each: its paragraph and the answers (details) that follow it
  for (const element of section.querySelectorAll(":scope > p, :scope > details")) {
    if (element.matches("p") && element.textContent.startsWith("Question ")) questions.push({ text: element, answers: [] });
    else if (element.matches("details") && questions.length) questions.at(-1).answers.push(element);
  }
  const first = new Map();                                    // question: whether its first try was right
  const score = document.createElement("p");
  score.setAttribute("role", "status");                       // read aloud when it changes
  section.append(score);
  questions.forEach(({ text, answers }, number) => answers.forEach((answer) => {
    const summary = answer.querySelector("summary");
    text.id ||= `question-${number + 1}`;
    summary.setAttribute("aria-describedby", text.id);        // whoever comes by Tab hears the question, too
    summary.addEventListener("click", () => {                 // Enter and Space click; a search in the page, which unfolds, does not
      if (answer.open) return;
      const right = answer.querySelector("p > strong")?.textContent.startsWith("Right");
      answer.classList.add(right ? "right-answer" : "wrong-answer");
      if (!first.has(number)) first.set(number, right);
      const points = [...first.values()].filter(Boolean).length;
      score.textContent = `${right ? "Right." : "No."} Right at the first try: ${points} of ${first.size} tried, ${questions.length} in all.`;
    });
  }));
});

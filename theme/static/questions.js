// The questions at the end of a chapter work without this script: each answer unfolds and says why. The script adds the score:
// how many questions were right at the first try.
document.addEventListener("DOMContentLoaded", () => {
  const section = document.getElementById("questions");
  if (!section) return;
  const questions = [];                                       // each: the answers (details) that follow its paragraph
  for (const element of section.querySelectorAll("p, details")) {
    if (element.matches("p") && element.textContent.startsWith("Question ")) questions.push([]);
    else if (element.matches("details") && questions.length) questions.at(-1).push(element);
  }
  const first = new Map();                                    // question: whether its first try was right
  const score = document.createElement("p");
  score.setAttribute("role", "status");                       // read aloud when it changes
  section.append(score);
  questions.forEach((answers, question) => answers.forEach((answer) => answer.addEventListener("toggle", () => {
    if (!answer.open) return;
    const right = answer.querySelector("strong")?.textContent.startsWith("Right");
    answer.classList.add(right ? "right-answer" : "wrong-answer");
    if (!first.has(question)) first.set(question, right);
    const points = [...first.values()].filter(Boolean).length;
    score.textContent = `Right at the first try: ${points} of ${first.size} tried, ${questions.length} in all.`;
  })));
});
